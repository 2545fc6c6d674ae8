"""The score network in native code: PyTorch's in several shapes, the same bytes everywhere, and what it refuses."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")

from druse import DruseError, InputError, radius_graph  # noqa: E402
from druse._gemnet import GemNetT  # noqa: E402
from druse.bundle import GraphSpec  # noqa: E402
from druse.conditions import ScalarProperty  # noqa: E402
from druse.crystals import Crystals  # noqa: E402
from druse.graphs import Graph, GraphBuffers  # noqa: E402
from druse_export.bundles.networks import ExportedDecoder, ExportedProjection  # noqa: E402
from druse_export.bundles.reference import random_crystals  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAE, ConCDVAEConfig  # noqa: E402
from druse_export.models.gemnet import GemNetConfig, Scale  # noqa: E402
from druse_export.models.geometry import score_geometry  # noqa: E402

GAP = ScalarProperty("band_gap", 0.0, 8.0, 0.2, "eV")
SHAPES = {
    "the paper's": {},
    "all widths differ": {"atom": 64, "edge": 96, "triplet": 32, "bilinear": 128, "rbf": 8, "cbf": 12, "n_radial": 50},
    "other depths": {"n_blocks": 2, "n_before_skip": 3, "n_after_skip": 0, "n_concat": 2, "n_atom": 1, "n_species": 32},
    "other degrees": {"n_blocks": 1, "n_spherical": 3, "n_before_skip": 0, "n_concat": 0, "n_atom": 0},
}


def network(shape: dict[str, int]) -> ConCDVAE:
    torch.manual_seed(0)
    config = ConCDVAEConfig(
        conditions=(GAP,), predicted=(GAP,), decoder=GemNetConfig(latent=32, **shape), latent=32, hidden=32
    )
    model = ConCDVAE(config).eval()
    for module in model.decoder.modules():
        if isinstance(module, Scale):
            module.factor.fill_(float(torch.rand(())) + 0.5)
    return model


def native(model: ConCDVAE) -> GemNetT:
    config = model.config.decoder
    spec = GraphSpec(
        mode="exact",
        cutoff=config.cutoff,
        max_neighbors=config.max_neighbors,
        symmetrise="union",
        shell_tolerance=1e-3,
        n_radial=config.n_radial,
        n_spherical=config.n_spherical,
    )
    tensors = {name: value.numpy() for name, value in ExportedDecoder(model).state_dict().items()}
    return GemNetT(tensors, spec)


def batch(n: int, n_species: int = 100) -> tuple[Crystals, Graph]:
    crystals = random_crystals(np.random.default_rng(n), n)
    crystals = crystals.replace(species=(crystals.species - 1) % n_species + 1)
    return crystals, graph_of(crystals)


def graph_of(crystals: Crystals, out: GraphBuffers | None = None) -> Graph:
    return radius_graph(
        crystals.frac, crystals.cells, crystals.offsets, cutoff=9.0, max_neighbors=20, symmetrise="union", out=out
    )


def inputs(model: ConCDVAE, n: int) -> tuple["torch.Tensor", np.ndarray, np.ndarray]:
    """z_con, projected, and levels."""
    z_con = torch.randn(n, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return z_con, ExportedProjection(model)(z_con).numpy(), (np.arange(n) * 7 % 50).astype(np.int32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("n", [1, 7])
@torch.no_grad()
def test_it_is_pytorchs(shape: dict[str, int], n: int) -> None:
    model = network(shape)
    crystals, graph = batch(n, model.config.decoder.n_species)
    z_con, latent, level = inputs(model, n)
    score, logits = native(model).score(graph, crystals.species, latent, level)
    exact = model.double()
    geometry = score_geometry(graph, model.config.decoder)
    geometry = type(geometry)(*(x.double() if x.is_floating_point() else x for x in geometry))
    types = torch.from_numpy(crystals.species.astype(np.int64))
    expected = exact.score(z_con.double(), torch.from_numpy(level), types, geometry)
    for got, twin in zip((score, logits), expected, strict=True):
        assert np.abs(got - twin.numpy()).max() < 3e-6 * float(twin.abs().max())


def test_the_same_bytes_on_every_instruction_set_and_whatever_the_batch() -> None:
    model = network(SHAPES["other depths"])
    decoder, (crystals, graph) = native(model), batch(9, 32)
    _, latent, level = inputs(model, 9)
    expected = decoder.score(graph, crystals.species, latent, level)
    for isa in ("baseline", "avx2", "avx512"):
        try:
            got = decoder.score(graph, crystals.species, latent, level, isa=isa)
        except DruseError as error:
            assert "not supported" in str(error)  # noqa: PT017 - the other sets are compared all the same
            continue
        assert [x.tobytes() for x in got] == [x.tobytes() for x in expected], isa
    for b in range(9):
        one = crystals[b]
        got = decoder.score(graph_of(one), one.species, latent[b : b + 1], level[b : b + 1])
        atoms = slice(crystals.offsets[b], crystals.offsets[b + 1])
        assert [x.tobytes() for x in got] == [x[atoms].tobytes() for x in expected]


def test_buffers_of_a_fixed_capacity() -> None:
    """Mirrors then lie behind the capacity, and not behind the last edge."""
    model = network(SHAPES["other degrees"])
    decoder, (crystals, graph) = native(model), batch(4)
    _, latent, level = inputs(model, 4)
    buffers = GraphBuffers.allocate(len(crystals.species), graph.n_edges + 77, graph.in_edge.shape[1] + 3)
    roomy = graph_of(crystals, buffers)
    assert roomy.mirror == graph.n_edges + 77
    expected = decoder.score(graph, crystals.species, latent, level)
    got = decoder.score(roomy, crystals.species, latent, level)
    assert [x.tobytes() for x in got] == [x.tobytes() for x in expected]


def test_what_does_not_fit_is_refused() -> None:
    model = network(SHAPES["other degrees"])
    decoder, (crystals, graph) = native(model), batch(3)
    _, latent, level = inputs(model, 3)
    for species, levels in ((0, 0), (101, 0), (1, 50), (1, -1)):
        wrong = np.full_like(crystals.species, species), np.full_like(level, levels)
        with pytest.raises(DruseError, match="out of range"):
            decoder.score(graph, wrong[0], latent, wrong[1])
    tensors = {name: value.numpy() for name, value in ExportedDecoder(model).state_dict().items()}
    spec = GraphSpec(
        mode="exact",
        cutoff=9.0,
        max_neighbors=20,
        symmetrise="union",
        shell_tolerance=1e-3,
        n_radial=128,
        n_spherical=3,
    )
    for name in ("decoder.radial.weight", "decoder.blocks.0.ca.weight", "decoder.species_bias"):
        for changed in (None, tensors[name][:-1]):
            some = {key: value for key, value in tensors.items() if key != name}
            with pytest.raises(InputError, match=r"file has not the weights of its formulation gemnet-t-1"):
                GemNetT(some if changed is None else {**some, name: changed}, spec, "file")


def test_widths_that_fill_no_panels_go_through_onnx_runtime() -> None:
    assert ExportedDecoder(network({})).formulation == "gemnet-t-1"
    assert ExportedDecoder(network({"triplet": 48})).formulation == ""
