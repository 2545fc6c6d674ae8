"""Pairs of crystals that pymatgen's StructureMatcher refuses, told without asking it, at a fifth of its time.

The matcher lays lattice a, the first crystal's, on lattice b (Ong et al., Comput. Mater. Sci. 68, 314, 2013). Both are
primitive cells of N atoms, scaled to one volume; the unit of length here is l = (V / N)^(1/3), which is 1 for either.
It accepts a pair only if there are

* three vectors of lattice a, a basis of it, with lengths and angles of the edges of b: ratios of lengths above
  1 / (1 + ltol) and below 1 + ltol, angles no more than angle_tol apart;
* for their mean with b's edges (of lengths and of angles), a translation and a permutation of atoms of each element,
  so that no atom is as far as stol * l' from its partner, where l' = (V' / N)^(1/3) is of that mean cell, once the mean
  of the vectors between partners is taken off.

Three conditions follow, each dearer than the one before. None holds for fewer pairs than the matcher accepts, for each
is part of what it computes, or follows from it; tolerances here are a millionth wider, so that rounding cannot matter.

`minima`    Lattice a has three independent vectors shorter than 1 + ltol times the edges of b. So its i-th successive
            minimum is shorter than 1 + ltol times the i-th shortest edge of b, whichever basis either is given in.
`mappings`  The three vectors exist: all integer matrices of determinant 1 or -1 that lead to them, in one sweep.
`partners`  For vectors v_i between partners with mean m, ``|v_i - m| < stol l'``, so ``|v_i - v_j| < 2 stol l'`` for
            any two. If atom j of b is laid on its partner in a, every atom of b then has its own partner, of its
            element, nearer than 2 stol l', and so has every atom of a. So there must be a mapping, and an atom of a for
            one atom of b, of the rarest element, by which all have one that near. (The matcher tries the same
            translations, and asks for partners in a box about this ball first.)
"""

import functools
import itertools
from typing import Any, Literal

import numpy as np

from druse._arrays import Float64, Int64
from druse._fingerprints import as_structure
from druse.crystals import Crystals
from druse.lattice import volumes

LTOL, STOL, ANGLE_TOL = 0.2, 0.3, 5.0
"""Of the paper: a share of lengths, a share of (V / N)^(1/3), degrees."""

_RATIO = (1 + LTOL) * (1 + 1e-6)
_NEAR = 2 * STOL * (1 + 1e-6)
_COS_ANGLE = 1e-9  # a millionth of a degree and more
_ANGLE = ANGLE_TOL + 1e-6
_VECTORS = 200_000  # of a lattice; cells that need more are left to the matcher
_ENTRIES = 2_000_000  # of an array, and of all pairs of atoms in all trials; with more the matcher is as fast
_IMAGED = 20_000
_ROWS = 8  # atoms whose partners are looked for at once; most trials fail with the first ones
_FIRST = 8
_IMAGES = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))


class Primitive:
    """A crystal in a primitive cell, in units of (V / N)^(1/3); what few pairs need is made when it is asked for.

    Attributes:
        crystal: as given, a batch of one.
        structure: the same for pymatgen.
        cell: ``[3, 3]`` row vectors.
        lengths: ``[3]`` of the edges.
        angles: ``[3]`` of the cell, in degrees.
        frac: ``[atoms, 3]``, sorted by element.
        elements: the atoms of each element, those of the rarest first.
    """

    def __init__(self, crystals: Crystals, place: int, cell: np.ndarray) -> None:
        self._crystals, self._place, self.cell = crystals, place, cell

    @classmethod
    def each(cls, crystals: Crystals) -> "list[Primitive]":
        """Of a batch."""
        return [cls(crystals, place, cell) for place, cell in enumerate(_scaled(crystals))]

    @functools.cached_property
    def crystal(self) -> Crystals:
        return self._crystals[self._place]

    @functools.cached_property
    def structure(self) -> Any:
        return as_structure(self.crystal)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return _shape(self.cell)[0]

    @functools.cached_property
    def angles(self) -> np.ndarray:
        return np.degrees(np.arccos(_shape(self.cell)[1]))  # type: ignore[no-any-return]

    @functools.cached_property
    def frac(self) -> np.ndarray:
        return self.crystal.frac[np.argsort(self.crystal.species, kind="stable")]

    @functools.cached_property
    def elements(self) -> tuple[slice, ...]:
        _, counts = np.unique(self.crystal.species, return_counts=True)
        stops = np.cumsum(counts)
        return tuple(slice(stops[k] - counts[k], stops[k]) for k in np.argsort(counts, kind="stable"))


def edges(crystals: Crystals) -> Float64[np.ndarray, "crystals 3"]:
    """Lengths of the edges of each cell, the shortest first, in units of (V / N)^(1/3)."""
    return np.sort(np.linalg.norm(_scaled(crystals), axis=-1), axis=-1)


def minima(crystal: Crystals) -> Float64[np.ndarray, "3"]:
    """Successive minima of one crystal's lattice, in units of (V / N)^(1/3); zeros where they are too dear.

    The i-th is the least length for which i independent vectors are no longer. All vectors as long as the longest edge
    are looked at, so the cell need not be reduced.
    """
    cell = _scaled(crystal)[0]
    steps = _vectors(cell, float(np.linalg.norm(cell, axis=1).max()) * (1 + 1e-9))
    if steps is None:
        return np.zeros(3)
    lengths = np.linalg.norm(steps @ cell, axis=1)
    order = np.argsort(lengths, kind="stable")[1:]  # the first is no step at all
    steps, lengths = steps[order], lengths[order]
    across = np.cross(steps[0], steps)
    second = int(np.argmax(across.any(axis=1)))
    third = int(np.argmax(steps @ across[second] != 0))
    return lengths[[0, second, third]]  # type: ignore[no-any-return]


def may_lie(minima_a: np.ndarray, edges_b: np.ndarray) -> np.ndarray:
    """By the `minima` of lattices a and the `edges` of b, ``[..., 3]`` each: which are not refused yet."""
    return np.asarray((minima_a < _RATIO * edges_b).all(axis=-1))


def refused_by(a: Primitive, b: Primitive) -> Literal["mappings", "partners", ""]:
    """Which condition StructureMatcher's ``fit(a, b)`` cannot meet; empty where it has to be asked.

    Args:
        a: a crystal.
        b: one of the same number of atoms of each element.
    """
    try:
        found = mappings(a, b)
        if found is None:
            return ""
        if not len(found):
            return "mappings"
        return "" if partners(a, b, found) else "partners"
    except np.linalg.LinAlgError:  # of a cell without volume, or nearly so
        return ""


def mappings(a: Primitive, b: Primitive) -> Int64[np.ndarray, "mappings 3 3"] | None:
    """Matrices that make of the edges of ``a`` those of a cell shaped as ``b``; None where they are too many to list.

    Args:
        a: whose lattice is laid on the other.
        b: the other.
    """
    steps = _vectors(a.cell, float(b.lengths.max()) * _RATIO)
    if steps is None:
        return None
    vectors = steps @ a.cell
    lengths = np.linalg.norm(vectors, axis=1)
    ratios = lengths[:, None] / b.lengths
    of_edge = [np.flatnonzero(fits) for fits in ((ratios < _RATIO) & (ratios > 1 / _RATIO)).T]
    if len(of_edge[0]) * len(of_edge[1]) * len(of_edge[2]) == 0:
        return np.zeros((0, 3, 3), np.int64)
    units = [vectors[of] / lengths[of, None] for of in of_edge]
    wide = np.cos(np.radians(np.minimum(b.angles + _ANGLE, 180))) - _COS_ANGLE
    narrow = np.cos(np.radians(np.maximum(b.angles - _ANGLE, 0))) + _COS_ANGLE

    def fit(i: int, j: int) -> np.ndarray:
        cosines = units[i] @ units[j].T
        k = 3 - i - j
        return (cosines >= wide[k]) & (cosines <= narrow[k])  # type: ignore[no-any-return]

    first, second = np.nonzero(fit(0, 1))
    if len(first) * len(of_edge[2]) > _ENTRIES:
        return None
    pair, third = np.nonzero(fit(1, 2)[second] & fit(0, 2)[first])
    rows = (of_edge[0][first[pair]], of_edge[1][second[pair]], of_edge[2][third])
    found = np.stack([steps[row] for row in rows], axis=1)
    determinants = np.einsum("mk,mk->m", found[:, 0], np.cross(found[:, 1], found[:, 2]))
    return np.asarray(found[np.abs(determinants) == 1])


def partners(a: Primitive, b: Primitive, found: Int64[np.ndarray, "mappings 3 3"]) -> bool:
    """Whether some mapping and translation give each atom of either crystal a partner of its element in the other.

    Args:
        a: a crystal.
        b: one of the same number of atoms of each element.
        found: `mappings` of both.

    Returns:
        True also for what would take longer than the matcher.
    """
    anchors = a.elements[0]
    trials = np.mgrid[: len(found), anchors.start : anchors.stop].reshape(2, -1)
    if trials.shape[1] * max(atoms.stop - atoms.start for atoms in a.elements) ** 2 > _ENTRIES:
        return True
    lengths, cosines = _shape(found @ a.cell)
    metric = _metric((lengths + b.lengths) / 2, (np.arccos(cosines) + np.radians(b.angles)) / 2)
    radius = _NEAR * (np.sqrt(np.linalg.det(metric)) / len(a.frac)) ** (1 / 3)
    # the least box about the ball, in fractional coordinates
    box = radius[:, None] * np.sqrt(np.diagonal(np.linalg.inv(metric), axis1=1, axis2=2))
    if not (box < 1.5).all():  # a flat cell, with more images than are looked at
        return True
    frac = a.frac @ np.linalg.inv(found)

    def in_box(mapping: np.ndarray, anchor: np.ndarray, of_a: slice, of_b: slice) -> tuple[np.ndarray, np.ndarray]:
        """``[trials, atoms of b, atoms of a, 3]`` steps in the mean cell, nearly the shortest; which are in the box."""
        from_anchor = frac[mapping, of_a] - frac[mapping, anchor][:, None]
        step = from_anchor[:, None] - (b.frac[of_b] - b.frac[anchors.start])[None, :, None]
        step -= np.round(step)
        return step, (np.abs(step) <= box[mapping][:, None, None]).all(axis=-1)

    def in_ball(mapping: np.ndarray, anchor: np.ndarray) -> bool:
        for atoms in a.elements:
            step, near = in_box(mapping, anchor, atoms, atoms)
            entries = np.nonzero(near)
            step, of = step[near], mapping[entries[0]]
            squares = [_squares(step[k : k + _IMAGED], metric[of[k : k + _IMAGED]]) for k in range(0, len(of), _IMAGED)]
            near[entries] = np.concatenate([np.zeros(0), *squares]) < radius[of] ** 2
            kept = np.all(near.any(axis=1), axis=1) & np.all(near.any(axis=2), axis=1)
            mapping, anchor = mapping[kept], anchor[kept]
        return len(mapping) > 0

    mapping, anchor = trials
    for atoms in a.elements:
        for k in range(atoms.start, atoms.stop, _ROWS):
            _, near = in_box(mapping, anchor, atoms, slice(k, min(k + _ROWS, atoms.stop)))
            kept = np.all(near.any(axis=2), axis=1)
            mapping, anchor = mapping[kept], anchor[kept]
    # of a pair that fits, the first ones do as a rule
    return in_ball(mapping[:_FIRST], anchor[:_FIRST]) or in_ball(mapping[_FIRST:], anchor[_FIRST:])


def _squares(step: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Of the lengths of steps, each by the nearest of 27 images."""
    images = step[:, None] + _IMAGES
    return np.asarray(np.einsum("eik,eik->ei", images @ metric, images).min(axis=1))


def _scaled(crystals: Crystals) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return crystals.cells / np.cbrt(volumes(crystals.cells) / crystals.n_atoms)[:, None, None]  # type: ignore[no-any-return]


def _shape(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of edges and cosines of angles, ``[..., 3]`` each."""
    lengths = np.linalg.norm(cells, axis=-1)
    units = cells / lengths[..., None]
    cosines = (np.roll(units, -1, axis=-2) * np.roll(units, -2, axis=-2)).sum(axis=-1)
    return lengths, np.clip(cosines, -1, 1)


def _metric(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """``[..., 3, 3]`` scalar products of the edges of cells; angles in radians."""
    cosines = np.cos(angles)
    metric = lengths[..., :, None] * lengths[..., None, :]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        metric[..., i, j] *= cosines[..., 3 - i - j]
        metric[..., j, i] = metric[..., i, j]
    return np.asarray(metric)


def _vectors(cell: np.ndarray, radius: float) -> np.ndarray | None:
    """``[vectors, 3]`` integer coefficients, among them those of all lattice vectors no longer than a radius."""
    # the k-th coefficient of a vector is its product with the k-th reciprocal one
    reach = np.floor(radius * np.linalg.norm(np.linalg.inv(cell), axis=0))
    return _grid(*reach.astype(int).tolist()) if np.prod(2 * reach + 1) <= _VECTORS else None


@functools.lru_cache(maxsize=64)
def _grid(i: int, j: int, k: int) -> np.ndarray:
    grid = np.mgrid[-i : i + 1, -j : j + 1, -k : k + 1].reshape(3, -1).T.copy()
    grid.flags.writeable = False
    return grid
