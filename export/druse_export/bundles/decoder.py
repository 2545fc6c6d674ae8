"""The score network as it leaves PyTorch: every constant folded into a weight, matrices as they multiply.

`druse_export.models.gemnet` is the statement of the network; this is the same function for inference alone. A stream of
features is kept without the constant factor (gains of SiLU, 1/sqrt 2) that its true values have, and the weights that
read it make up for that. What acts on the same rows is one product. There is no scatter, no mask, no shape that depends
on values, and indices are int32, so every backend takes it.

=================================  ================================================================
GemNet                             here
=================================  ================================================================
z_con and time in the atom layer   ``latent`` (a product of the heads, once) + a row of ``levels``
c silu(x W)                        ``Layer``: y sigmoid(y / c) with y = x (c W)
(x + dense(dense(x))) / sqrt 2     ``x + layer(layer(x))``
=================================  ================================================================
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from druse_export.models.blocks import INV_SQRT_2, SILU_GAIN, Dense, SinusoidalEmbedding
from druse_export.models.gemnet import EdgeUpdate, ForceHead, GemNet, Interaction


class Layer(nn.Module):
    """x W, or for an ``amplitude`` c: c silu(x W / c)."""

    def __init__(self, weight: Tensor, amplitude: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)  # [in, out]
        self.amplitude = amplitude

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        y = torch.matmul(x, self.weight)
        return y * torch.sigmoid(y * (1 / self.amplitude)) if self.amplitude else y


class Stream:
    """The factor that the values of a stream of features lack, followed through the layers while they are folded."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def dense(self, dense: Dense, factor: float = SILU_GAIN) -> Layer:
        """A layer on this stream, whose output lacks ``factor``."""
        weight = dense.weight.T * self.factor
        if not dense.activate:
            return Layer(weight / factor)
        amplitude = SILU_GAIN / factor
        return Layer(weight * amplitude, amplitude)

    def residuals(self, blocks: Iterable[Any]) -> nn.ModuleList:
        """The layers of a chain of residual blocks, two for each; the stream lacks 1/sqrt 2 more after each."""
        layers: list[nn.Module] = []
        for block in blocks:
            layers.append(self.dense(block.first))
            layers.append(Stream(SILU_GAIN).dense(block.second, self.factor))
            self.factor *= INV_SQRT_2
        return nn.ModuleList(layers)


def add_residuals(layers: Sequence[nn.Module] | nn.ModuleList, x: Tensor) -> Tensor:
    """X + layer(layer(x)) for each two layers."""
    pairs = list(layers)
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        x = x + second(first(x))
    return x


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` at an index of any shape."""
    return x.index_select(0, index.reshape(-1)).reshape(*index.shape, x.shape[-1])


def columns(x: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """``[..., sum of widths]`` in pieces of these widths.

    Slices, for ONNX Runtime's CUDA provider copies the widths of a Split from the host each time: such a call cannot be
    repeated from a captured graph. For the same reason no product has a batch that is broadcast: it copies pointers.
    """
    ends = list(itertools.accumulate(widths))
    return [x[..., end - width : end] for end, width in zip(ends, widths, strict=True)]


class Ends(nn.Module):
    """What atoms give to the edges between them: a projection of the source and one of the target."""

    def __init__(self, update: EdgeUpdate) -> None:
        super().__init__()
        self.both = Layer(torch.cat([update.source, update.target]).T)

    def forward(self, h: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        """Atoms ``[N, atom]`` to ``[2, H, edge]``."""
        both = self.both(h)
        of_source, of_target = columns(both, [both.shape[1] // 2] * 2)
        ends = torch.stack([src, dst])
        return rows(of_source, ends) + rows(of_target, torch.stack([dst, src]))


class Block(nn.Module):
    """An interaction block on a stream that lacks ``stream.factor``."""

    def __init__(self, block: Interaction, stream: Stream) -> None:
        super().__init__()
        triplets, update = block.triplets, block.atom_update
        self.ba = stream.dense(triplets.dense_ba)
        self.gate = Layer(triplets.radial.weight.T * SILU_GAIN * triplets.scale_radial.factor)
        self.down = Stream(1.0).dense(triplets.down)
        weight = triplets.bilinear.flatten(0, 1) * SILU_GAIN * triplets.scale_sum.factor
        self.bilinear = Layer(weight)
        # both halves of x = (dense_ca + triplets) / sqrt 2, and that sum, lack SILU_GAIN / sqrt 2
        inner = Stream(SILU_GAIN * INV_SQRT_2)
        self.ca = stream.dense(block.dense_ca)
        self.up_ca = Stream(1.0).dense(triplets.up_ca, SILU_GAIN / INV_SQRT_2)
        self.up_ac = Stream(1.0).dense(triplets.up_ac, SILU_GAIN / INV_SQRT_2)
        self.before_skip = inner.residuals(block.before_skip)
        self.skip = inner.factor / stream.factor
        stream.factor *= INV_SQRT_2
        self.after_skip = stream.residuals(block.after_skip)

        self.atom_gate = Layer(update.radial.weight.T * stream.factor)
        atom = Stream(1.0)
        self.atom_dense = Layer(update.dense.weight.T * update.scale.factor, 1.0)
        atom.factor = SILU_GAIN
        self.atom_residuals = atom.residuals(update.residuals)
        self.atom_factor = atom.factor * INV_SQRT_2

        self.ends = Ends(block.concat)
        self.feature = Layer(block.concat.feature.T * stream.factor)
        update_m = Stream(SILU_GAIN)
        self.residual_m = update_m.residuals(block.residual_m)
        self.update = update_m.factor / stream.factor
        stream.factor *= INV_SQRT_2

    def forward(
        self,
        h: Tensor,
        m: Tensor,
        rbf3: Tensor,
        rbf_h: Tensor,
        radial_cbf: Tensor,
        legendre: Tensor,
        src: Tensor,
        dst: Tensor,
        in_edge: Tensor,
        valid: Tensor,
        slot: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Atoms ``[N, atom]`` and edges ``[2, H, edge]`` to the same; ``radial_cbf`` is that of directed edges."""
        n_half, n_atoms, degree = m.shape[1], legendre.shape[0], legendre.shape[3]
        x = self.down(self.ba(m) * self.gate(rbf3))
        block = rows(x.flatten(0, 1), in_edge)
        summed = torch.matmul(legendre.reshape(n_atoms, -1, degree), block)
        summed = summed.reshape(n_atoms * degree, -1)  # [N D, spherical * triplet]
        per_edge = summed.index_select(0, slot).reshape(2 * n_half, radial_cbf.shape[2], -1)
        t = self.bilinear(torch.matmul(radial_cbf, per_edge).reshape(2, n_half, -1))
        x = self.ca(m) + (self.up_ca(t) + swap(self.up_ac(t)))
        x = add_residuals(self.before_skip, x)
        m = add_residuals(self.after_skip, m + x * self.skip)

        weighted = (m * self.atom_gate(rbf_h)).flatten(0, 1)
        total = torch.matmul(valid[:, None, :], rows(weighted, in_edge)).squeeze(1)
        update = add_residuals(self.atom_residuals, self.atom_dense(total))
        h = h * INV_SQRT_2 + update * self.atom_factor

        y = self.ends(h, src, dst) + self.feature(m)
        y = add_residuals(self.residual_m, y * torch.sigmoid(y))
        return h, m + y * self.update


def swap(x: Tensor) -> Tensor:
    """``[2, H, channels]`` with the directions of the edges exchanged."""
    return torch.cat([x[1:], x[:1]])


class Force(nn.Module):
    """Edge forces of one output block, as coefficients of the radial basis."""

    def __init__(self, head: ForceHead, stream: Stream) -> None:
        super().__init__()
        self.dense = stream.dense(head.dense)
        inner = Stream(SILU_GAIN)
        self.residuals = inner.residuals(head.residuals)
        self.out = Layer(head.radial.weight * head.out.T * head.scale.factor * inner.factor)

    def forward(self, m: Tensor) -> Tensor:
        """``[2, H, edge]`` to ``[2, H, rbf]``."""
        return self.out(add_residuals(self.residuals, self.dense(m)))


class Decoder(nn.Module):
    """Edge forces and element logits of noisy crystals."""

    def __init__(self, gemnet: GemNet, time: SinusoidalEmbedding, n_levels: int) -> None:
        super().__init__()
        config = self.config = gemnet.config
        normal = ((2 * torch.arange(config.n_spherical, dtype=gemnet.cbf3.dtype) + 1) / (4 * math.pi)).sqrt()
        cbf = (gemnet.cbf3 * normal[:, None, None]).permute(1, 2, 0).reshape(config.n_radial, -1)  # [radial, c * l]
        embedding = gemnet.edge_embedding
        weights = [gemnet.rbf3.weight.T, gemnet.rbf_h.weight.T, gemnet.rbf_out.weight.T, cbf, embedding.feature.T]
        self.radial = Layer(torch.cat(weights, dim=1))
        of_element, _, of_time = torch.split(gemnet.atom_latent.weight, [config.atom, config.latent, config.time], 1)
        levels = time(torch.arange(n_levels))
        self.elements = Layer(gemnet.elements @ of_element.T)
        self.levels = Layer(levels @ of_time.T)
        self.ends = Ends(embedding)
        stream = Stream(SILU_GAIN)
        self.forces = nn.ModuleList([Force(gemnet.forces[0], stream)])  # type: ignore[arg-type]
        self.blocks = nn.ModuleList()
        for block, head in zip(gemnet.interactions, list(gemnet.forces)[1:], strict=True):
            self.blocks.append(Block(block, stream))  # type: ignore[arg-type]
            self.forces.append(Force(head, stream))  # type: ignore[arg-type]
        self.species = Layer(gemnet.species.weight.T)
        self.species_bias = nn.Parameter(gemnet.species.bias.detach().clone(), requires_grad=False)

    def forward(
        self,
        latent: Tensor,
        level: Tensor,
        species: Tensor,
        crystal: Tensor,
        radial: Tensor,
        legendre: Tensor,
        src: Tensor,
        dst: Tensor,
        in_edge: Tensor,
        valid: Tensor,
        slot: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One evaluation.

        Args:
            latent: ``[B, atom]`` z_con, projected (an output of the heads).
            level: ``[B]`` number of the noise level.
            species: ``[N]`` atomic numbers.
            crystal: ``[N]`` the crystal of each atom.
            radial: ``[H, n_radial]`` radial basis of the half edges.
            legendre: ``[N, D, n_spherical, D]``, 0 in padding and on the diagonal.
            src: ``[H]`` sources of the half edges.
            dst: ``[H]`` their targets.
            in_edge: ``[N, D]`` directed edges into each atom; anything in range in padding.
            valid: ``[N, D]`` 1, or 0 in padding.
            slot: ``[2 H]`` places of the directed edges in the flattened ``in_edge``.

        Returns:
            Forces along the directed edges ``[2, H]`` and logits ``[N, n_species]``.
        """
        config = self.config
        sizes = [config.rbf, config.rbf, config.rbf, config.cbf * config.n_spherical, config.edge]
        rbf3, rbf_h, rbf_out, radial_cbf, edge = columns(self.radial(radial), sizes)
        radial_cbf = torch.cat([radial_cbf, radial_cbf]).reshape(-1, config.cbf, config.n_spherical)
        per_crystal = latent + rows(self.levels.weight, level)
        h = rows(self.elements.weight, species - 1) + rows(per_crystal, crystal)
        y = self.ends(h, src, dst) + edge
        m = y * torch.sigmoid(y)
        force = self.forces[0](m)
        for block, head in zip(self.blocks, list(self.forces)[1:], strict=True):
            h, m = block(h, m, rbf3, rbf_h, radial_cbf, legendre, src, dst, in_edge, valid, slot)
            force = force + head(m)
        return torch.sum(force * rbf_out, dim=-1), torch.matmul(h, self.species.weight) + self.species_bias
