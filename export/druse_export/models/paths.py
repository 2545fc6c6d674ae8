"""Sums over paths of two edges that meet at an atom, by the angle between them: what encoder and decoder share.

On a CPU in float32 they run in native code (``druse_path_sum`` and ``druse_triplet_sum`` of ``druse.h``), an atom at a
time with its own number of edges, forward and backward. Elsewhere they are dense blocks of all atoms, batched products.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from druse import _native
from druse_export.models.blocks import gather, rearranged


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Edges that get a sum ("rows") and edges that are summed, at every atom; every edge has a row at one atom.

    Attributes:
        row_edge, row_degree: ``[N, P]`` and ``[N]`` int32.
        row_place: ``[E]`` the place of each edge in the flattened ``row_edge``.
        sum_edge, sum_degree, sum_place: ``[N, Q]``, ``[N]`` and ``[E]``, the same of edges that are summed.
        row_label, sum_label: ``[E]`` int32: an edge is not summed for a row with its label.
        unit: ``[E, 3]`` unit vectors, or ``[E / 2, 3]`` of half edges that are followed by their mirrors.
    """

    row_edge: Tensor
    row_degree: Tensor
    row_place: Tensor
    sum_edge: Tensor
    sum_degree: Tensor
    sum_place: Tensor
    row_label: Tensor
    sum_label: Tensor
    unit: Tensor
    _blocks: dict[int, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def mirror(self) -> int:
        """The number of half edges, or 0."""
        return 0 if len(self.unit) == len(self.row_place) else len(self.unit)

    def legendre(self, n_spherical: int) -> Tensor:
        """``[N, P, n_spherical, Q]`` polynomials of the angles; 0 in padding and where labels are the same."""
        if n_spherical not in self._blocks:
            self._blocks[n_spherical] = _legendre(self, n_spherical)
        return self._blocks[n_spherical]

    def native(self, *tensors: Tensor) -> bool:
        """Whether native code takes these tensors, the last of them with channels."""
        return tensors[-1].shape[-1] % 16 == 0 and all(
            x.dtype == torch.float32 and x.device.type == "cpu" for x in (self.unit, *tensors)
        )

    def structure(self) -> "_Structure":
        """As native code takes it; it keeps the arrays alive."""
        return _Structure(self)


@torch.no_grad()
def _legendre(paths: Paths, n_spherical: int) -> Tensor:
    unit = torch.cat([paths.unit, -paths.unit]) if paths.mirror else paths.unit
    valid = [
        torch.arange(table.shape[1], device=unit.device) < degree[:, None]
        for table, degree in ((paths.row_edge, paths.row_degree), (paths.sum_edge, paths.sum_degree))
    ]
    labels = (paths.row_label[paths.row_edge.long()], paths.sum_label[paths.sum_edge.long()])
    mask = valid[0][:, :, None] & valid[1][:, None, :] & (labels[0][:, :, None] != labels[1][:, None, :])
    with torch.autocast(unit.device.type, enabled=False):  # in bfloat16 the polynomials would be of another angle
        cosine = torch.matmul(gather(unit, paths.row_edge), gather(unit, paths.sum_edge).transpose(1, 2))
    blocks = [mask.to(unit.dtype), mask * cosine]
    for order in range(2, n_spherical):
        blocks.append(((2 * order - 1) * cosine * blocks[-1] - (order - 1) * blocks[-2]) / order)
    return torch.stack(blocks[:n_spherical], dim=2)


class _Structure:
    """A ``druse_paths`` and the tensors behind it."""

    def __init__(self, paths: Paths) -> None:
        fields = (paths.row_edge, paths.row_degree, paths.sum_edge, paths.sum_degree, paths.row_label, paths.sum_label)
        self.kept = [field.to(torch.int32).contiguous() for field in fields]
        self.unit = paths.unit.contiguous()
        n_atoms, row_capacity = paths.row_edge.shape
        self.argument = _native.Paths(
            n_atoms,
            len(paths.row_place),
            row_capacity,
            paths.sum_edge.shape[1],
            *(tensor.data_ptr() for tensor in (*self.kept, self.unit)),
            paths.mirror,
        )

    def call(self, function: str, sizes: tuple[int, int, int], *tensors: Tensor) -> None:
        """Call a function of ``druse.h`` with contiguous tensors."""
        threads = _native.cpu(torch.get_num_threads())
        _native.call(function, threads, self.argument, *sizes, *(tensor.data_ptr() for tensor in tensors))


class _PathSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, spherical: Tensor, paths: Paths) -> Tensor:
        x, weight, spherical = x.contiguous(), weight.contiguous(), spherical.contiguous()
        out = torch.empty_like(x)
        ctx.structure, ctx.sizes = paths.structure(), (*weight.shape,)
        ctx.structure.call("druse_path_sum", ctx.sizes, spherical, weight, x, out)
        ctx.save_for_backward(x, weight, spherical)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, spherical = ctx.saved_tensors
        given = gradients[0].contiguous()
        of_weight, of_x = torch.empty_like(weight), torch.empty_like(x)
        ctx.structure.call("druse_path_sum_gradient", ctx.sizes, spherical, weight, x, given, of_weight, of_x)
        return of_x, of_weight, None, None


def path_sum(x: Tensor, weight: Tensor, spherical: Tensor, paths: Paths) -> Tensor:
    """DimeNet's sum: ``out[e, c] = sum_fl P_l(cos(e, f)) x[f, c] sum_n spherical[f, l, n] weight[l, n, c]``.

    Args:
        x: ``[E, channels]``.
        weight: ``[n_spherical, n_radial, channels]``.
        spherical: ``[E, n_spherical, n_radial]``, a constant.
        paths: of the edges.

    Returns:
        ``[E, channels]``.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        x, weight = x.float(), weight.float()
    if paths.native(spherical, weight, x):
        out: Tensor = _PathSum.apply(x, weight, spherical, paths)  # type: ignore[no-untyped-call]
        return out
    n_spherical, _, channels = weight.shape
    factors = torch.einsum("eln,lnc->elc", spherical.to(x.dtype), weight.to(x.dtype))
    rows = rearranged((x[:, None] * factors).flatten(1), paths.sum_edge.flatten(), paths.sum_place)
    n_atoms, n_sum = paths.sum_edge.shape
    rows = rows.reshape(n_atoms, n_sum, n_spherical, channels).transpose(1, 2).flatten(1, 2)
    blocks = torch.matmul(paths.legendre(n_spherical).flatten(2).to(rows.dtype), rows)
    return rearranged(blocks.flatten(0, 1), paths.row_place, paths.row_edge.flatten())


class _TripletSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, radial: Tensor, paths: Paths) -> Tensor:
        x, radial = x.contiguous(), radial.contiguous()
        n_basis, n_spherical = radial.shape[1:]
        out = x.new_empty(len(x), n_basis, x.shape[1])
        ctx.structure, ctx.sizes = paths.structure(), (n_spherical, n_basis, x.shape[1])
        ctx.structure.call("druse_triplet_sum", ctx.sizes, radial, x, out)
        ctx.save_for_backward(x, radial)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, radial = ctx.saved_tensors
        given = gradients[0].contiguous()
        of_x, of_radial = torch.empty_like(x), radial.new_empty(len(x), *radial.shape[1:])
        ctx.structure.call("druse_triplet_sum_gradient", ctx.sizes, radial, x, given, of_radial, of_x)
        return of_x, torch.add(*of_radial.chunk(2)) if len(radial) < len(x) else of_radial, None


def triplet_sum(x: Tensor, radial: Tensor, paths: Paths) -> Tensor:
    """GemNet's sum: ``out[e, k, c] = sum_l radial[e, k, l] sum_f P_l(cos(e, f)) x[f, c]``.

    Args:
        x: ``[E, channels]``.
        radial: ``[E, n_basis, n_spherical]``, or of half edges.
        paths: of the edges.

    Returns:
        ``[E, n_basis, channels]``.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        x, radial = x.float(), radial.float()
    if paths.native(radial, x):
        out: Tensor = _TripletSum.apply(x, radial, paths)  # type: ignore[no-untyped-call]
        return out
    n_basis, n_spherical = radial.shape[1:]
    legendre = paths.legendre(n_spherical).flatten(1, 2).to(x.dtype)
    rows = rearranged(x, paths.sum_edge.flatten(), paths.sum_place).reshape(*paths.sum_edge.shape, x.shape[1])
    summed = torch.matmul(legendre, rows)  # [N, P * spherical, channels]
    n_atoms, n_rows = paths.row_edge.shape
    per_edge = rearranged(summed.reshape(n_atoms * n_rows, -1), paths.row_place, paths.row_edge.flatten())
    per_edge = per_edge.reshape(-1, len(radial), n_spherical, x.shape[1])
    return torch.matmul(radial, per_edge).reshape(-1, n_basis, x.shape[1])
