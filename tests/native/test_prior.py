"""The prior's network and reverse process in native code: a float64 twin, and bytes that depend on a row alone."""

import numpy as np
import pytest

from druse import InputError, _native
from druse._prior import ResidualMLP, fits
from druse.noise import Purpose
from druse.sampling import ddpm_update
from druse.schedules import ddpm_schedule

WIDTHS = (64, 32, 32, 64, 96, 96)
"""From 96 down to 64 and 32, up again, and out."""

N_STEPS = 5


def random_tensors(widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = (widths[-1], *widths[:-1])
    tensors = {
        f"weights.{k}": (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32)
        for k, (a, b) in enumerate(zip(inputs, widths, strict=True))
    }
    return tensors | {"steps": rng.normal(size=(N_STEPS, sum(widths))).astype(np.float32)}


def rows(n: int, widths: tuple[int, ...] = WIDTHS, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, widths[-1])).astype(np.float32), rng.normal(size=(n, sum(widths))).astype(np.float32)


def twin(tensors: dict[str, np.ndarray], z: np.ndarray, terms: np.ndarray, step: int) -> np.ndarray:
    """In float64, layer by layer as the paper has it."""
    matrices = [tensors[f"weights.{k}"].astype(np.float64) for k in range(len(tensors) - 1)]
    added = np.split(
        terms.astype(np.float64) + tensors["steps"][step], np.cumsum([m.shape[1] for m in matrices])[:-1], 1
    )
    down = len(matrices) // 2 - 1
    x = z.astype(np.float64)
    inputs = [x]
    for k in range(down):
        x = np.maximum(x @ matrices[k] + added[k], 0)
        inputs.append(x)
    for k in range(down, len(matrices) - 1):
        x = np.maximum(x @ matrices[k] + added[k], 0) + inputs[2 * down - k]
    return x @ matrices[-1] + added[-1]


@pytest.mark.parametrize("widths", [WIDTHS, (32, 32, 32, 32), (128, 64, 32, 32, 64, 128, 256, 256), (64, 64, 96, 96)])
@pytest.mark.parametrize("n", [1, 11, 48, 49, 150])
def test_the_network_is_the_twins(widths: tuple[int, ...], n: int) -> None:
    tensors, (z, terms) = random_tensors(widths), rows(n, widths)
    expected = twin(tensors, z, terms, 3)
    got = ResidualMLP(tensors).eps(z, terms, 3)
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


def test_bytes_depend_on_the_row_alone() -> None:
    network, (z, terms) = ResidualMLP(random_tensors()), rows(130)
    together = network.eps(z, terms, 1)
    assert network.eps(z, terms, 1, n_threads=3).tobytes() == together.tobytes()
    for start, stop in ((0, 1), (7, 20), (47, 49), (96, 130), (129, 130)):
        assert network.eps(z[start:stop], terms[start:stop], 1).tobytes() == together[start:stop].tobytes()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bytes(isa: str) -> None:
    if _native.ISAS[isa] > _native.library().druse_best_isa():
        pytest.skip(f"this processor lacks {isa}")
    network, (z, terms) = ResidualMLP(random_tensors()), rows(60)
    assert network.eps(z, terms, 2, isa=isa).tobytes() == network.eps(z, terms, 2).tobytes()
    schedule, ids = ddpm_schedule(np.linspace(0.01, 0.2, N_STEPS)), np.arange(60, dtype=np.uint64)
    chains = [
        network.denoise(z, terms, range(4, -1, -1), schedule, seed=5, crystal_ids=ids, isa=name)[0]
        for name in (isa, "best")
    ]
    assert chains[0].tobytes() == chains[1].tobytes()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_chain_is_the_loop(n_threads: int) -> None:
    network, (z, terms) = ResidualMLP(random_tensors()), rows(101)
    schedule, ids = ddpm_schedule(np.linspace(0.01, 0.2, N_STEPS)), np.arange(1000, 1101, dtype=np.uint64)
    chained, status = network.denoise(
        z, terms, range(4, -1, -1), schedule, seed=9, crystal_ids=ids, n_threads=n_threads
    )
    looped = z
    for t in range(4, -1, -1):
        looped, _ = ddpm_update(
            looped,
            network.eps(looped, terms, t),
            alpha=float(schedule.alpha[t]),
            alpha_bar=float(schedule.alpha_bar[t]),
            noise_scale=float(schedule.sigma[t]),
            seed=9,
            crystal_ids=ids,
            step=t,
            purpose=Purpose.LATENT_STEP,
        )
    assert not status.any()
    assert chained.tobytes() == looped.tobytes()
    part, _ = network.denoise(z[40:60], terms[40:60], range(4, 1, -1), schedule, seed=9, crystal_ids=ids[40:60])
    part, _ = network.denoise(part, terms[40:60], range(1, -1, -1), schedule, seed=9, crystal_ids=ids[40:60])
    assert part.tobytes() == chained[40:60].tobytes()


def test_what_is_not_finite_stays_alone_and_is_reported() -> None:
    network, (z, terms) = ResidualMLP(random_tensors()), rows(30)
    schedule, ids = ddpm_schedule(np.linspace(0.01, 0.2, N_STEPS)), np.arange(30, dtype=np.uint64)
    good, _ = network.denoise(z, terms, range(4, -1, -1), schedule, seed=9, crystal_ids=ids)
    z[3, 5], terms[17, 0] = np.nan, np.inf
    found, status = network.denoise(z, terms, range(4, -1, -1), schedule, seed=9, crystal_ids=ids)
    assert np.flatnonzero(status).tolist() == [3, 17]
    assert found[3].tobytes() == z[3].tobytes(), "it keeps what it had"
    others = np.setdiff1d(np.arange(30), [3, 17])
    assert found[others].tobytes() == good[others].tobytes()
    terms[20, :] = np.nan
    assert np.isnan(network.eps(z, terms, 0)[20]).all(), "NaN passes through max(x, 0)"


def test_no_rows() -> None:
    network = ResidualMLP(random_tensors())
    z, terms = rows(0)
    assert network.eps(z, terms, 0).shape == (0, 96)


@pytest.mark.parametrize(
    "widths", [(64, 32, 32, 96, 96, 96), (64, 32, 32, 64, 96, 64), (48, 32, 32, 48, 96, 96), (96, 96)]
)
def test_other_shapes_are_not_taken(widths: tuple[int, ...]) -> None:
    tensors = random_tensors(widths)
    assert not fits([tensors[f"weights.{k}"] for k in range(len(widths))])
    with pytest.raises(InputError, match="formulation residual-mlp-1"):
        ResidualMLP(tensors)


def test_the_c_function_checks_its_arguments() -> None:
    network, (z, terms) = ResidualMLP(random_tensors()), rows(2)
    native, out = _native.library(), np.empty_like(z)
    arguments = [_native.pointer(a) for a in (z, terms, out)]

    def call(net: _native.ResidualMLP, n: int = 2, step: int = 0) -> int:
        return native.druse_prior_eps(_native.cpu(1), net, n, step, *arguments)

    def changed(**values: object) -> _native.ResidualMLP:
        net = _native.ResidualMLP.from_buffer_copy(network._net)
        for name, value in values.items():
            setattr(net, name, value)
        return net

    assert call(network._net) == _native.OK
    wrong = np.array([64, 32, 32, 96, 96, 96], np.int32)
    for net in (
        changed(n_layers=5), changed(n_layers=2), changed(n_layers=34), changed(latent=64), changed(weights=None),
        changed(steps=None), changed(widths=None), changed(n_steps=0), changed(widths=_native.pointer(wrong)),
    ):  # fmt: skip
        assert call(net) == _native.ERROR_ARGUMENT
    assert call(network._net, n=-1) == _native.ERROR_ARGUMENT
    assert call(network._net, step=N_STEPS) == _native.ERROR_ARGUMENT
    assert call(network._net, step=-1) == _native.ERROR_ARGUMENT
