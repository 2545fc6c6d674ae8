"""Run every CUDA kernel once and compare with the CPU, for ``compute-sanitizer``: no pytest, torch or Hypothesis.

Run ``compute-sanitizer --tool memcheck python tests/gpu/sanitize.py``, and the same with ``racecheck`` or
``synccheck``.
"""

import itertools
import sys
from collections.abc import Iterator

from operations import (
    EVERY,
    EXACT,
    HALF,
    NONE,
    UNION,
    UPSTREAM,
    Batch,
    add_gumbel,
    advance,
    combine,
    count_edges,
    ddpm,
    differences,
    draws,
    force_sum,
    incidence,
    langevin,
    lattices,
    legendre,
    pad_graph,
    radial_basis,
    radius_graph,
    random_batch,
    tables,
    troubled,
)
from places import missing


def graphs(crystals: Batch) -> Iterator[tuple[str, list[str]]]:
    for mode, symmetrise, k in itertools.product((EXACT, UPSTREAM), (NONE, HALF, UNION), (20, EVERY)):
        options = {"mode": mode, "symmetrise": symmetrise, "k": k, "cutoff": 5.0}
        total = count_edges(crystals, **options)
        for capacity in (total, total // 2):
            yield (
                f"radius_graph {options} {capacity}",
                differences(radius_graph, crystals, **options, capacity=capacity),
            )
    options = {"k": 12, "tolerance": -1.0, "cutoff": 8.0, "symmetrise": NONE}
    yield "radius_graph of CGCNN", differences(radius_graph, crystals, **options, capacity=12 * crystals.n_atoms)


def everything() -> Iterator[tuple[str, list[str]]]:
    """The name of each call, and the outputs in which the device differs."""
    crystals = random_batch(1, 12)
    for several in (crystals, lattices(), troubled(), random_batch(2, 1, (70, 70))):
        yield from graphs(several)
    for half in (True, False):
        graph, table = tables(crystals, half=half)
        yield "incidence", differences(incidence, crystals, graph, half=half)
        yield "incidence, narrow", differences(incidence, crystals, graph, half=half, width=5)
        for n_spherical in (1, 3, 7):
            yield "legendre", differences(legendre, graph, table, half=half, n_spherical=n_spherical)
        yield "force_sum", differences(force_sum, graph, table, half=half)
    for kind in ("normal", "uniform", "gumbel"):
        yield kind, differences(draws, kind, crystals.offsets, crystals.n_crystals, 3)
        yield kind, differences(draws, kind, None, 40, 101)
    yield "add_gumbel", differences(add_gumbel, crystals.offsets, crystals.n_crystals, 101)
    for two in (False, True):
        yield "combine", differences(combine, 301, two=two)
    yield "advance", differences(advance, 5)
    for capacity, width in ((2000, 40), (90, 40), (2000, 5)):
        yield "pad_graph", differences(pad_graph, crystals, capacity=capacity, width=width)
    for given, spoil in itertools.product((False, True), repeat=2):
        yield "langevin", differences(langevin, crystals, given_noise=given, allowed=given, spoil=spoil)
        yield "ddpm", differences(ddpm, 9, 259, given_noise=given, spoil=spoil)
    yield "langevin, large", differences(langevin, random_batch(3, 2, (70, 300)))
    yield "radial_basis", differences(radial_basis, 301)


def main() -> int:
    reason = missing()
    if reason is not None:
        sys.stderr.write(f"nothing was run: {reason}\n")
        return 2
    wrong = [(name, found) for name, found in everything() if found]
    for name, found in wrong:
        sys.stderr.write(f"{name}: {', '.join(found)} differ from the CPU's\n")
    sys.stderr.write(f"{len(wrong)} calls differ\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
