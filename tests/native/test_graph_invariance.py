"""Physics as properties: what describes the same crystal has the same exact graph."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import structures
from reference.compare import assert_same_edges, crystal_bytes, edges_of, ends_of_lists, graph_of, lengths
from reference.structures import Structure

from druse import Graph, radius_graph
from druse.graphs import SHELL_TOLERANCE

K = 12
CUTOFF = 5.0
crystals = structures.structures(max_atoms=16, per_atom=4.0)
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def exact(crystal: Structure) -> Graph:
    return graph_of(crystal, cutoff=CUTOFF, max_neighbors=K)


def ends(graph: Graph) -> np.ndarray:
    return ends_of_lists(graph, CUTOFF, K, SHELL_TOLERANCE)


def vectors(graph: Graph) -> dict[tuple[int, ...], np.ndarray]:
    return dict(zip(edges_of(graph), graph.unit, strict=True))


@given(crystals, generators)
def test_translation(crystal: Structure, rng: np.random.Generator) -> None:
    before, after = exact(crystal), exact(crystal._replace(frac=crystal.frac + rng.normal(size=3)))
    assert_same_edges(lengths(before), lengths(after), ends(before))


@given(crystals, generators)
def test_rotation(crystal: Structure, rng: np.random.Generator) -> None:
    turn = structures.rotation(rng)
    before, after = exact(crystal), exact(crystal._replace(cell=crystal.cell @ turn))
    assert_same_edges(lengths(before), lengths(after), ends(before))
    old, new = vectors(before), vectors(after)
    both = sorted(old.keys() & new.keys())
    turned = np.array([old[e] for e in both]).reshape(-1, 3) @ turn
    np.testing.assert_allclose(np.array([new[e] for e in both]).reshape(-1, 3), turned, atol=1e-6)


@given(crystals)
def test_reflection_gives_the_other_handedness(crystal: Structure) -> None:
    before, after = exact(crystal), exact(crystal._replace(cell=crystal.cell * [1, 1, -1]))
    assert np.linalg.det(crystal.cell) * np.linalg.det(crystal.cell * [1, 1, -1]) < 0
    assert_same_edges(lengths(before), lengths(after), ends(before))


@given(crystals, generators)
def test_permutation(crystal: Structure, rng: np.random.Generator) -> None:
    order = rng.permutation(len(crystal.frac))
    before, after = exact(crystal), exact(crystal._replace(frac=crystal.frac[order]))
    mapped = {(order[s], order[t], *image): d for (s, t, *image), d in lengths(after).items()}
    assert_same_edges(lengths(before), mapped, ends(before))


@given(crystals, generators)
def test_union_does_not_depend_on_the_order_of_atoms(crystal: Structure, rng: np.random.Generator) -> None:
    order = rng.permutation(len(crystal.frac))
    directed = []
    for structure, name in ((crystal, np.arange(len(order))), (crystal._replace(frac=crystal.frac[order]), order)):
        graph = graph_of(structure, cutoff=CUTOFF, max_neighbors=K, symmetrise="union").directed()
        keys = zip(name[graph.src], name[graph.dst], *graph.image.T, strict=True)
        directed.append({tuple(map(int, key)): float(d) for key, d in zip(keys, graph.distance, strict=True)})
    last = ends(exact(crystal))
    for src, dst, *image in directed[0].keys() ^ directed[1].keys():
        distance = directed[0].get((src, dst, *image), directed[1].get((src, dst, *image), 0.0))
        assert min(abs(distance - last[src]), abs(distance - last[dst])) <= 1e-5


@given(crystals, generators)
def test_lattice_shifts_of_single_atoms(crystal: Structure, rng: np.random.Generator) -> None:
    shift = rng.integers(-3, 4, crystal.frac.shape)
    before, after = exact(crystal), exact(crystal._replace(frac=crystal.frac + shift))
    mapped = {(s, t, *(image + shift[s] - shift[t])): d for (s, t, *image), d in lengths(after).items()}
    assert_same_edges(lengths(before), mapped, ends(before))


@given(crystals, generators)
def test_another_basis_of_the_lattice(crystal: Structure, rng: np.random.Generator) -> None:
    basis = structures.unimodular(rng)
    assert abs(round(np.linalg.det(basis))) == 1
    back = np.round(np.linalg.inv(basis)).astype(np.int64)
    before = exact(crystal)
    after = exact(Structure("other basis", crystal.frac @ back, basis @ crystal.cell))
    mapped = {(s, t, *(np.array(image) @ basis)): d for (s, t, *image), d in lengths(after).items()}
    assert_same_edges(lengths(before), mapped, ends(before))


@settings(max_examples=40)
@given(structures.structures(max_atoms=8, per_atom=6.0), generators)
def test_supercell(crystal: Structure, rng: np.random.Generator) -> None:
    times = rng.integers(1, 4, 3)
    copies = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), axis=-1).reshape(-1, 3)
    large = Structure(
        "supercell",
        ((copies[:, None] + crystal.frac) / times).reshape(-1, 3),
        times[:, None] * crystal.cell,
    )
    small, n = exact(crystal), len(crystal.frac)
    last = ends(small)
    own = [np.sort(small.distance[small.dst == atom]) for atom in range(n)]
    graph = exact(large)
    for atom in range(len(large.frac)):
        found, expected = np.sort(graph.distance[graph.dst == atom]), own[atom % n]
        sure = (np.sum(d < last[atom % n] - 1e-5) for d in (found, expected))
        assert len(set(sure)) == 1
        inside = expected < last[atom % n] - 1e-5
        np.testing.assert_allclose(found[: inside.sum()], expected[inside], rtol=2e-6)
    # the source's place in the small cell and the translation between the cells, too
    frac, image = large.frac, graph.image[: graph.n_edges]
    whole = np.round((frac[graph.src] + image) * times - crystal.frac[graph.src % n])
    origin = np.round(frac[graph.dst] * times - crystal.frac[graph.dst % n])
    folded = {
        (int(s % n), int(t % n), *map(int, w)): float(d)
        for s, t, w, d in zip(graph.src, graph.dst, whole - origin, graph.distance, strict=True)
    }
    assert_same_edges(lengths(small), folded, last)


@given(st.lists(structures.structures(max_atoms=12, per_atom=6.0), min_size=2, max_size=6), generators)
def test_batch_order(several: list[Structure], rng: np.random.Generator) -> None:
    order = rng.permutation(len(several))
    for mode in ("exact", "upstream"):
        options = {"cutoff": CUTOFF, "max_neighbors": K, "mode": mode}
        before = radius_graph(*structures.batch(several), **options)
        after = radius_graph(*structures.batch([several[b] for b in order]), **options)
        for place, b in enumerate(order):
            assert crystal_bytes(before, b) == crystal_bytes(after, place)


@given(st.lists(structures.structures(max_atoms=12, per_atom=6.0), min_size=2, max_size=6), st.data())
def test_batch_split(several: list[Structure], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(several) - 1))
    symmetrise = data.draw(st.sampled_from(["none", "upstream", "union"]))
    for mode in ("exact", "upstream"):
        options = {"cutoff": CUTOFF, "max_neighbors": K, "mode": mode, "symmetrise": symmetrise}
        whole = radius_graph(*structures.batch(several), **options)
        parts = [radius_graph(*structures.batch(part), **options) for part in (several[:cut], several[cut:])]
        together = [crystal_bytes(whole, b) for b in range(len(several))]
        assert together == [crystal_bytes(part, b) for part in parts for b in range(part.n_crystals)]
