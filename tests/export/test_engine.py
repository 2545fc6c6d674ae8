"""The runtime on bundles made here: parity with PyTorch, bytes that depend on a crystal alone, memory that runs out."""

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="bundles are made with PyTorch")

import small_bundle  # noqa: E402

from druse import Crystals, InputError, _score  # noqa: E402
from druse._gemnet import GemNetT  # noqa: E402
from druse._networks import ROWS_TOGETHER  # noqa: E402
from druse._onnx import float_tensors  # noqa: E402
from druse._prior import FORMULATION  # noqa: E402
from druse.backends import open_backend  # noqa: E402
from druse.bundle import Bundle  # noqa: E402
from druse.graphs import EMPTY, SINGULAR  # noqa: E402
from druse.model import Model  # noqa: E402
from druse.schedules import ddpm_schedule  # noqa: E402
from druse_export.bundles.reference import random_crystals  # noqa: E402
from druse_export.models.geometry import score_geometry, score_graph  # noqa: E402

Make = Callable[[str, Callable[[Path], object]], Path]
N = 24


@pytest.fixture(scope="module")
def folder(made_once: Make) -> Path:
    return made_once("small_bundle", lambda out: small_bundle.make(out, 256))


@pytest.fixture(scope="module", params=["native", "onnx"])
def model(folder: Path, request: pytest.FixtureRequest) -> Model:
    return opened(folder, request.param)


def opened(folder: Path, way: str = "native", n_threads: int = 1) -> Model:
    """With Druse's own kernels, or with ONNX Runtime for every network."""
    backend = open_backend("ort-cpu", n_threads=n_threads)
    backend.fused = way == "native"
    model = Model.open(folder, backend=backend)
    assert model.manifest.decoder.formulation == "gemnet-t-1"
    return model


@pytest.fixture(scope="module")
def crystals() -> Crystals:
    return random_crystals(np.random.default_rng(3), N)


@pytest.fixture(scope="module")
def z(model: Model) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((N, model.manifest.latent)).astype(np.float32)


LEVEL = np.arange(N) * 2


def same_bytes(got: _score.Score, expected: _score.Score, crystals: Crystals, chosen: np.ndarray) -> bool:
    atoms = np.concatenate([np.arange(crystals.offsets[b], crystals.offsets[b + 1]) for b in chosen])
    return (
        got.scaled.tobytes() == expected.scaled[atoms].tobytes()
        and got.logits.tobytes() == expected.logits[atoms].tobytes()
    )


@torch.no_grad()
def test_the_score_is_pytorchs(model: Model, crystals: Crystals, z: np.ndarray) -> None:
    network = small_bundle.small_model(256)
    config = network.config.decoder
    geometry = score_geometry(score_graph(crystals, config), config)
    types = torch.from_numpy(crystals.species.astype(np.int64))
    score, logits = network.score(torch.from_numpy(z), torch.from_numpy(LEVEL), types, geometry)
    found = model.score(crystals, z, LEVEL)
    assert np.abs(found.scaled - score.numpy()).max() < 1e-5 * float(score.abs().max())
    assert np.abs(found.logits - logits.numpy()).max() < 1e-5 * float(logits.abs().max())
    assert not found.status.any()


def test_a_graph_of_ones_own(model: Model, crystals: Crystals, z: np.ndarray) -> None:
    graph = _score.spec_graph(crystals, model.manifest.graph)
    given, found = model.score(crystals, z, LEVEL, graph=graph), model.score(crystals, z, LEVEL)
    assert same_bytes(given, found, crystals, np.arange(N))


def test_bytes_depend_on_the_crystal_alone(
    model: Model, folder: Path, crystals: Crystals, z: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, everything = model.score(crystals, z, LEVEL), np.arange(N)
    for n_threads in (2, 3):
        other = opened(folder, "native" if model.backend.fused else "onnx", n_threads)
        assert same_bytes(other.score(crystals, z, LEVEL), whole, crystals, everything)
    for size in (1, 60, 200, 10**9):
        monkeypatch.setattr(_score, "BIN", size)
        assert same_bytes(model.score(crystals, z, LEVEL), whole, crystals, everything)
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = rng.permutation(N)[: rng.integers(1, N)]
        some = model.score(crystals.take(chosen), z[chosen], LEVEL[chosen])
        assert same_bytes(some, whole, crystals, chosen)


def test_one_bad_crystal_harms_no_other(model: Model, crystals: Crystals, z: np.ndarray) -> None:
    good = model.score(crystals, z, LEVEL)
    cells, bad_z = crystals.cells.copy(), z.copy()
    cells[2], bad_z[5] = 0.0, np.nan
    empty = Crystals(np.zeros((0, 3)), np.eye(3)[None], np.zeros(2, np.int64), np.zeros(0, np.int32))
    mixed = Crystals.concatenate([crystals.replace(cells=cells), empty])
    found = model.score(mixed, np.vstack([bad_z, z[:1]]), np.append(LEVEL, 0))
    assert found.status[2] & SINGULAR
    assert found.status[N] & EMPTY
    atoms = [slice(crystals.offsets[b], crystals.offsets[b + 1]) for b in range(N)]
    assert not found.scaled[atoms[2]].any()
    assert np.isnan(found.logits[atoms[5]]).all()
    for b in set(range(N)) - {2, 5}:
        assert found.scaled[atoms[b]].tobytes() == good.scaled[atoms[b]].tobytes()
        assert found.logits[atoms[b]].tobytes() == good.logits[atoms[b]].tobytes()


def test_an_atom_alone_has_no_force(model: Model, z: np.ndarray) -> None:
    lonely = Crystals(np.zeros((1, 3)), 50.0 * np.eye(3)[None], np.array([0, 1]), np.array([8], np.int32))
    found = model.score(lonely, z[:1], 0)
    assert not found.scaled.any()
    assert np.isfinite(found.logits).all()


def test_nothing_to_do(model: Model) -> None:
    none = Crystals.concatenate([])
    found = model.score(none, np.zeros((0, 256), np.float32), 0)
    assert found.scaled.shape == (0, 3)
    assert model.heads(np.zeros((0, 256), np.float32)).lengths.shape == (0, 3)


@torch.no_grad()
def test_rows_are_pytorchs_and_their_own(model: Model, z: np.ndarray) -> None:
    network = small_bundle.small_model(256)
    values = {"band_gap": np.linspace(0, 8, N).astype(np.float32), "crystal_system": np.arange(N) % 3}
    z_con = model.condition(values, z)
    given = {
        "band_gap": torch.from_numpy(values["band_gap"]),
        "crystal_system": torch.from_numpy(values["crystal_system"]),
    }
    expected = network.mix_latent(torch.from_numpy(z), network.condition(given)).numpy()
    assert np.abs(z_con - expected).max() < 1e-5 * np.abs(expected).max()
    heads, predicted = model.heads(z_con), model.predict(z)
    assert np.abs(predicted["crystal_system"].sum(1) - 1).max() < 1e-6
    for b in (0, 7, 23):
        one = {"band_gap": float(values["band_gap"][b]), "crystal_system": ["cubic", "hexagonal", "triclinic"][b % 3]}
        assert model.condition(one, z[b : b + 1]).tobytes() == z_con[b : b + 1].tobytes()
        for mine, all_ in zip(model.heads(z_con[b : b + 1]), heads, strict=True):
            assert mine.tobytes() == all_[b : b + 1].tobytes()
        for name, value in model.predict(z[b : b + 1]).items():
            assert value.tobytes() == predicted[name][b : b + 1].tobytes()
    sized = model.heads(z_con, n_atoms=np.full(N, 8))
    assert np.allclose(sized.lengths, model.heads(z_con, n_atoms=np.full(N, 1)).lengths * 2, rtol=1e-6)


@torch.no_grad()
def test_the_prior_with_and_without_native_code(folder: Path, z: np.ndarray) -> None:
    backend = open_backend("ort-cpu", n_threads=2)
    native = Model.open(folder, backend=backend)
    assert native.manifest.priors["default"].network.formulation == FORMULATION
    products = open_backend("ort-cpu", n_threads=2)
    products.fused = False
    plain = Model.open(folder, backend=products)
    network = small_bundle.small_prior(256)
    terms = native.prior_terms({"band_gap": 2.0}, N)
    condition = network.condition({"band_gap": torch.full((N,), 2.0)})
    expected = network.predict_noise(torch.from_numpy(z), condition, torch.full((N,), 13)).numpy()
    ids = np.arange(N, dtype=np.uint64)
    chains = []
    for one in (native, plain):
        assert np.abs(one.prior_step(z, terms, 13) - expected).max() < 1e-5 * np.abs(expected).max()
        found, status = one.denoise(z, terms, seed=3, crystal_ids=ids)
        alone, _ = one.denoise(z[9:10], terms[9:10], seed=3, crystal_ids=ids[9:10])
        assert not status.any()
        assert alone.tobytes() == found[9:10].tobytes()
        chains.append(found)
    assert np.abs(chains[0] - chains[1]).max() < 1e-4 * np.abs(chains[0]).max()


def test_a_prior_of_another_shape_goes_through_onnx_runtime(made_once: Make) -> None:
    model = Model.open(made_once("narrow_bundle", small_bundle.make), backend="ort-cpu", n_threads=1)
    assert model.manifest.priors["default"].network.formulation == ""
    z = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
    terms = model.prior_terms({"band_gap": [1.0, 2.0, 3.0]}, 3, prior="wide")
    assert model.denoise(z, terms, seed=0, crystal_ids=[5, 6, 7], prior="wide")[0].shape == (3, 128)


@pytest.mark.usefixtures("as_users_call")
def test_bad_input(model: Model, crystals: Crystals, z: np.ndarray) -> None:
    terms, graph = model.prior_terms({"band_gap": 2.0}, N), _score.spec_graph(crystals, model.manifest.graph)
    for message, call in {
        r"`level` must be from 0 to 49, got 50": lambda: model.score(crystals, z, 50),
        r"`level` must have shape \[24\], got \[3\]": lambda: model.score(crystals, z, [0, 1, 2]),
        r"one row for each of the 24 crystals, got 3": lambda: model.score(crystals, z[:3], 0),
        r"`species` must be atomic numbers from 1 to 100, got 0": lambda: model.score(
            crystals.replace(species=np.zeros(len(crystals.species), np.int32)), z, 0
        ),
        r"half edges": lambda: model.score(crystals[0], z[:1], 0, graph=graph),
        r"`z` must have shape \[crystals, 256\]": lambda: model.predict(z[:, :5]),
        r"exactly the properties band_gap, crystal_system; got band_gap": lambda: model.condition({"band_gap": 1}, z),
        r"`prior` must be one of .*'default', 'wide'": lambda: model.prior_terms({}, 1, prior="none"),
        r"`step` must be from 0 to 19, got 20": lambda: model.prior_step(z, terms, 20),
        r"`steps` must descend by 1": lambda: model.denoise(z, terms, seed=0, crystal_ids=range(N), steps=range(3)),
        r"no network 'encoder'": lambda: model.runner("encoder"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_a_network_of_other_inputs_is_refused_before_it_runs(folder: Path) -> None:
    text = (folder / "manifest.json").read_bytes()
    files = {name: (folder / name).read_bytes() for name in msgspec.json.decode(text)["files"]}
    for old, new in ((b'"name": "z_con"', b'"name": "other"'), (b'"name": "slot"', b'"name": "place"')):
        assert old in text
        with pytest.raises(InputError, match=r"small: .* must take and give .*; build the bundle again"):
            Model(Bundle("small", text.replace(old, new), files), open_backend("ort-cpu"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("max_atoms", 9),
        ("n_species", 99),
        ("heads.inputs.0.shape.0", "rows"),
        ("heads.outputs.1.shape", ["crystals", 7]),
        ("predictor.outputs.1.shape", ["crystals", 4]),
        ("latent_projection.outputs.0.shape", ["crystals", 64]),
        ("decoder.inputs.0.shape", ["crystals"]),
        ("decoder.inputs.0.shape", ["crystals", "features"]),
        ("decoder.inputs.0.shape", ["crystals", 64]),
        ("priors.wide.network.inputs.1.shape", ["crystals", 1]),
    ],
)
def test_a_manifest_that_says_other_shapes_is_refused_before_it_runs(folder: Path, place: str, value: Any) -> None:
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    *way, last = (int(key) if key.isdecimal() else key for key in place.split("."))
    functools.reduce(lambda part, key: part[key], way, manifest)[last] = value
    files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    with pytest.raises(InputError, match=r"small: .*build"):
        Model(Bundle("small", msgspec.json.encode(manifest), files), open_backend("ort-cpu"))


def test_rows_of_another_width_than_the_manifest_says_do_not_reach_native_code(folder: Path) -> None:
    text = (folder / "manifest.json").read_bytes()
    files = {name: (folder / name).read_bytes() for name in msgspec.json.decode(text)["files"]}
    network = onnx.load_from_string(files["latent_projection.onnx"])
    (made,), (given,) = network.graph.output, network.graph.input
    matrix = numpy_helper.from_array(np.ones((256, 8), np.float32), "narrow")
    graph = helper.make_graph([helper.make_node("MatMul", [given.name, "narrow"], [made.name])], "narrow", [given], [
        helper.make_tensor_value_info(made.name, TensorProto.FLOAT, ["crystals", 8])
    ], [matrix])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    files["latent_projection.onnx"] = model.SerializeToString()
    narrow = Model(Bundle("small", text, files), open_backend("ort-cpu"))
    with pytest.raises(InputError, match=r"latent_projection.onnx gives latent with the shape \[4, 8\]"):
        narrow.project(np.zeros((1, 256), np.float32))


def test_features_of_another_width_are_refused(model: Model, crystals: Crystals) -> None:
    with pytest.raises(InputError, match=r"`latent` must have shape \[crystals, 128\]"):
        model.score(crystals, None, 0, latent=np.zeros((N, 64), np.float32))


@pytest.mark.parametrize("name", ["decoder.blocks.0.down.weight", "decoder.blocks.0.bilinear.weight"])
def test_weights_without_columns_are_refused(folder: Path, name: str) -> None:
    bundle = Bundle.open(folder)
    network = onnx.load_from_string(bundle.read("decoder.onnx"))
    weights = float_tensors(network.SerializeToString())
    assert name in weights
    weights[name] = weights[name][:, :0]
    with pytest.raises(InputError, match="weights of its formulation"):
        GemNetT(weights, bundle.con_cdvae.graph)


def test_latents_come_in_pieces_between_which_a_person_can_stop_it(folder: Path) -> None:
    native = opened(folder)
    n = ROWS_TOGETHER + 3
    z, ids = np.random.default_rng(5).standard_normal((n, 256)).astype(np.float32), np.arange(n, dtype=np.uint64)
    terms, prior = native.prior_terms({"band_gap": 2.0}, n), native._fused_prior("default")
    assert prior is not None
    at_once, _ = prior.denoise(
        z, terms, range(19, -1, -1), ddpm_schedule(native.manifest.priors["default"].betas), seed=3, crystal_ids=ids
    )
    latents, status = native.denoise(z, terms, seed=3, crystal_ids=ids)
    assert np.array_equal(latents, at_once)
    assert status.tolist() == [0] * n
    assert native.denoise(z[:0], terms[:0], seed=3, crystal_ids=ids[:0])[0].shape == (0, 256)


@pytest.mark.parametrize("name", ["ort-cpu", "ort-host"])
def test_threads_that_come_at_once_share_what_is_loaded(folder: Path, name: str) -> None:
    """A device that is set up twice would have two locks for one stream of work."""
    model, together = Model.open(folder, backend=name, n_threads=1), threading.Barrier(6)

    def first(_: int) -> tuple[object, ...]:
        together.wait()
        return model.devices, model.runner("heads"), model._fused_decoder(), model._fused_prior("default")

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(first, range(6)))
    assert all(a is b for one in found for a, b in zip(one, found[0], strict=True))
    assert (found[0][0] is None) == (name == "ort-cpu")


@pytest.mark.parametrize(("way", "megabytes"), [("native", 60), ("onnx", 150)])
def test_memory_that_runs_out_halves_the_bins(folder: Path, way: str, megabytes: int) -> None:
    """In a process whose memory is limited: one bin of all does not fit, and the bytes are those of small bins."""
    script = """
import logging, resource, sys
import numpy as np
from druse import _score
from druse.backends import open_backend
from druse.model import Model
from druse_export.bundles.reference import random_crystals
rng = np.random.default_rng(0)
crystals, z = random_crystals(rng, 400), rng.standard_normal((400, 256)).astype(np.float32)
backend = open_backend("ort-cpu", n_threads=1)
backend.fused = sys.argv[2] == "native"
model = Model.open(sys.argv[1], backend=backend)
expected = model.score(crystals, z, 5)
_score.BIN = 10**9
logging.basicConfig(level=logging.INFO)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 1_000_000, -1))
got = model.score(crystals, z, 5)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(all(a.tobytes() == b.tobytes() for a, b in zip(got, expected)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), way, str(megabytes)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "True"
    assert "400 at once need more memory than there is" in done.stderr
