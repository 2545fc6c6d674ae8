"""Layers that several networks share."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from druse.errors import InputError

T = TypeVar("T")

SILU_GAIN = 1 / 0.6
"""GemNet and DimeNet scale SiLU so that it keeps the variance of a normal input."""

INV_SQRT_2 = 1 / math.sqrt(2)


def check_sizes(config: msgspec.Struct) -> None:
    """Refuse sizes of which no network is made; a file of weights says them, too.

    Raises:
        InputError: a width is not 1 to 65,536, or a number of layers not at most 256.
    """
    for name in config.__struct_fields__:
        size = getattr(config, name)
        if isinstance(size, int):
            least, most = 0 if name in _MAY_BE_NONE else 1, 256 if name in _LAYERS else 1 << 16
            if not least <= size <= most:
                raise InputError(f"`{name}` must be {least} to {most:,}, got {size}")


_MAY_BE_NONE = frozenset({"n_before_skip", "n_after_skip", "n_concat", "n_atom"})
_LAYERS = _MAY_BE_NONE | {"n_blocks", "n_output_layers", "n_convolutions", "n_spherical"}


def check_time(width: int) -> None:
    """Refuse a width of which `SinusoidalEmbedding` cannot give one half to each of sine and cosine."""
    if width < 4 or width % 2:
        raise InputError(f"`time` must be an even number from 4 up, got {width}")


def mlp(n_in: int, n_hidden: int, n_out: int, n_layers: int, *, batch_norm: bool = False) -> nn.Sequential:
    """``n_layers`` hidden layers with ReLU and a last linear one; batch-norm after the first layer on request."""
    layers: list[nn.Module] = [nn.Linear(n_in, n_hidden)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(n_hidden))
    layers.append(nn.ReLU())
    for _ in range(n_layers - 1):
        layers += [nn.Linear(n_hidden, n_hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(n_hidden, n_out))


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU divided by 0.6: x sigmoid(x) / 0.6."""
    return functional.silu(x) * SILU_GAIN


def he_orthogonal_(weight: Tensor) -> Tensor:
    """GemNet's initialisation: a semi-orthogonal matrix, standardised and scaled to variance 1 / fan-in.

    Reference: Gasteiger, Becker, Guennemann, NeurIPS 2021, appendix.
    """
    nn.init.orthogonal_(weight)
    fan_in = weight.shape[1] if weight.dim() == 2 else math.prod(weight.shape[:-1])
    axis = (0, 1) if weight.dim() == 3 else 1
    with torch.no_grad():
        variance, mean = torch.var_mean(weight, dim=axis, keepdim=True)
        weight.sub_(mean).div_((variance + 1e-6).sqrt()).mul_(fan_in**-0.5)
    return weight


class Scaled(NamedTuple):
    """A tensor and the factor that its true values lack: ``value * factor`` is meant.

    Constant factors (gains, 1/sqrt 2) so travel into the next weight, where they cost nothing.
    """

    value: Tensor
    factor: float

    def plus(self, other: "Scaled") -> "Scaled":
        """(self + other) / sqrt 2, in one pass."""
        return Scaled(torch.add(self.value, other.value, alpha=other.factor / self.factor), self.factor * INV_SQRT_2)

    def tensor(self) -> Tensor:
        """With the factor multiplied in."""
        return self.value * self.factor


class Dense(nn.Module):
    """A linear layer without bias, optionally followed by the scaled SiLU."""

    def __init__(self, n_in: int, n_out: int, *, activate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(he_orthogonal_(torch.empty(n_out, n_in)))
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in]`` to ``[..., n_out]``."""
        y: Tensor = functional.linear(x, self.weight)
        return scaled_silu(y) if self.activate else y

    def scaled(self, x: Scaled) -> Scaled:
        """The same for a tensor with a factor, which the weight takes up; SiLU's gain is left as the new factor."""
        y = functional.linear(x.value, self.weight * x.factor)
        return Scaled(functional.silu(y), SILU_GAIN) if self.activate else Scaled(y, 1.0)


class Residual(nn.Module):
    """(x + dense(dense(x))) / sqrt 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Dense(width, width)
        self.second = Dense(width, width)

    def forward(self, x: Scaled) -> Scaled:
        """``[..., width]`` to the same."""
        return x.plus(self.second.scaled(self.first.scaled(x)))


def chain(layers: Sequence[nn.Module] | nn.ModuleList, x: T) -> T:
    """The layers one after the other."""
    for layer in layers:
        x = layer(x)
    return x


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` ``[rows, channels]`` at an index of any shape."""
    return x.index_select(0, index.reshape(-1)).reshape(*index.shape, x.shape[-1])


class _Rearranged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None


def rearranged(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Rows of ``x`` at ``index``; the gradient is read at ``inverse``, where PyTorch's own would be added up.

    Of edges and their places in tables, each is the other's inverse: no edge has two places. Padding of a table names
    an edge, too; so a padded place must meet a factor of 0 further on, which is what masks of tables are for.

    Args:
        x: ``[rows, channels]``.
        index: ``[places]``, places for rows.
        inverse: ``[rows]``, of each row its place.
    """
    out: Tensor = _Rearranged.apply(x, index, inverse)  # type: ignore[no-untyped-call]
    return out


class _AtEnds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ends: Tensor, table: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(table, valid)
        return x.index_select(0, ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return sum_of_rows(gradients[0], *ctx.saved_tensors), None, None, None


def at_ends(x: Tensor, ends: Tensor, table: Tensor, valid: Tensor) -> Tensor:
    """Features of atoms ``[N, channels]`` at one end of every edge, ``[E, channels]``.

    Args:
        x: of atoms.
        ends: ``[E]`` an atom for each edge.
        table: ``[N, D]`` the edges of each atom by that end, which the gradient is summed by.
        valid: ``[N, D]`` 0 in padding.
    """
    out: Tensor = _AtEnds.apply(x, ends, table, valid)  # type: ignore[no-untyped-call]
    return out


def sum_of_rows(x: Tensor, table: Tensor, valid: Tensor) -> Tensor:
    """Sums of the edges ``[E, channels]`` that a table ``[N, D]`` names for each atom: ``[N, channels]``."""
    return torch.matmul(valid.to(x.dtype)[:, None, :], gather(x, table)).squeeze(1)


class SinusoidalEmbedding(nn.Module):
    """[sin(t f_k), cos(t f_k)] with frequencies from 1 down to 1e-4, then a linear layer and ReLU."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half) * -(math.log(10000) / (half - 1))
        self.register_buffer("frequencies", torch.exp(steps), persistent=False)
        self.linear = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Noise levels or steps ``[batch]`` to ``[batch, width]``."""
        angles = t[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.relu(self.linear(torch.cat([angles.sin(), angles.cos()], dim=-1)))
