"""The other networks as they leave PyTorch: plain tensors in and out, constants folded, in the units of the manifest.

Each has ``inputs`` and ``outputs``, the signature that the manifest records; the arguments of ``forward`` come in that
order.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from druse import _gemnet
from druse._prior import FORMULATION, fits
from druse.bundle import Tensor as Spec
from druse.conditions import ClassProperty, CompositionProperty, Property, ScalarProperty
from druse.errors import InputError
from druse_export.bundles.decoder import Decoder, rows
from druse_export.models.cgcnn import CGCNN, Convolution
from druse_export.models.con_cdvae import ConCDVAE
from druse_export.models.condition import N_ELEMENT_FEATURES, Condition
from druse_export.models.prior import Prior

Signature = tuple[Spec, ...]


def float32(name: str, *shape: int | str) -> Spec:
    """A float32 tensor of a signature."""
    return Spec(name=name, dtype="float32", shape=shape)


def int32(name: str, *shape: int | str) -> Spec:
    """An int32 tensor of a signature."""
    return Spec(name=name, dtype="int32", shape=shape)


class Exported(nn.Module):
    """A network with its signature."""

    inputs: Signature
    outputs: Signature
    formulation = ""


def property_inputs(properties: Sequence[Property]) -> Signature:
    """Scalars and class numbers ``[crystals]``, compositions ``[crystals, 92]``."""
    found = []
    for spec in properties:
        if isinstance(spec, ScalarProperty):
            found.append(float32(spec.name, "crystals"))
        elif isinstance(spec, ClassProperty):
            found.append(int32(spec.name, "crystals"))
        elif isinstance(spec, CompositionProperty):
            found.append(float32(spec.name, "crystals", N_ELEMENT_FEATURES))
    return tuple(found)


class ExportedCondition(Exported):
    """Properties, and z last, to z_con (eqs 10 and 11)."""

    def __init__(self, model: ConCDVAE) -> None:
        super().__init__()
        self.condition, self.z_condition = model.condition, model.z_condition
        self.inputs = (*property_inputs(model.config.conditions), float32("z", "crystals", model.config.latent))
        self.outputs = (float32("z_con", "crystals", model.config.latent),)

    def forward(self, *values: Tensor) -> Tensor:
        """The properties' values in order, then z."""
        condition = embed(self.condition, values[:-1])
        return self.z_condition(torch.cat([values[-1], condition], dim=-1))


def embed(condition: Condition, values: Sequence[Tensor]) -> Tensor:
    """The Condition block on values in the order of its properties."""
    return condition({spec.name: value for spec, value in zip(condition.properties, values, strict=True)})


class ExportedHeads(Exported):
    """z_con to atom count logits, the lattice in its units, and composition logits."""

    def __init__(self, model: ConCDVAE) -> None:
        super().__init__()
        config, self.heads = model.config, model.heads
        self.inputs = (float32("z_con", "crystals", config.latent),)
        self.outputs = (
            float32("n_atoms", "crystals", config.max_atoms + 1),
            float32("lattice", "crystals", 6),
            float32("composition", "crystals", config.decoder.n_species),
        )

    def forward(self, z_con: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lattice: lengths over the cube root of the number of atoms in Angstrom, angles in degrees."""
        n_atoms, lattice, composition = self.heads(z_con)
        return n_atoms, lattice * self.heads.lattice_std + self.heads.lattice_mean, composition


class ExportedProjection(Exported):
    """z_con to what it adds to every atom of the decoder."""

    def __init__(self, model: ConCDVAE) -> None:
        super().__init__()
        config, layer = model.config.decoder, model.decoder.atom_latent
        _, of_latent, _ = torch.split(layer.weight, [config.atom, config.latent, config.time], dim=1)
        self.weight = nn.Parameter(of_latent.detach().T.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.inputs = (float32("z_con", "crystals", config.latent),)
        self.outputs = (float32("latent", "crystals", config.atom),)

    def forward(self, z_con: Tensor) -> Tensor:
        """One product."""
        return torch.matmul(z_con, self.weight) + self.bias


class ExportedPredictor(Exported):
    """z to the predicted properties: scalars in their unit, classes as probabilities."""

    def __init__(self, model: ConCDVAE) -> None:
        super().__init__()
        self.predictor = model.predictor
        self.inputs = (float32("z", "crystals", model.config.latent),)
        self.outputs = tuple(
            float32(spec.name, "crystals", spec.n_classes)
            if isinstance(spec, ClassProperty)
            else float32(spec.name, "crystals")
            for spec in self.predictor.properties
        )

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """One output for each property."""
        outputs = []
        for spec, value in zip(self.predictor.properties, self.predictor(z).values(), strict=True):
            if isinstance(spec, ScalarProperty):
                outputs.append(value * (spec.maximum - spec.minimum) + spec.minimum)
            else:
                outputs.append(functional.softmax(value, dim=-1))
        return tuple(outputs)


class ExportedPriorCondition(Exported):
    """Properties to what they add to every layer of the prior's network, biases included."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        config, layers = prior.config, prior_layers(prior)
        self.condition = prior.condition
        pieces = [layer.weight[:, -config.condition - config.time : -config.time] for layer in layers]
        self.weight = nn.Parameter(torch.cat(pieces).detach().T.contiguous(), requires_grad=False)
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]).detach(), requires_grad=False)
        self.inputs = property_inputs(config.conditions)
        self.outputs = (float32("terms", "crystals", len(self.bias)),)

    def forward(self, *values: Tensor) -> Tensor:
        """The properties' values in order."""
        return torch.matmul(embed(self.condition, values), self.weight) + self.bias


class ExportedPrior(Exported):
    """The prior's network; what properties and time add to its layers is not computed here but given and looked up."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        config, layers = prior.config, prior_layers(prior)
        extra = config.condition + config.time
        self.weights = nn.ParameterList(
            nn.Parameter(layer.weight[:, :-extra].detach().T.contiguous(), requires_grad=False) for layer in layers
        )
        of_time = torch.cat([layer.weight[:, -config.time :] for layer in layers])
        steps = prior.time(torch.arange(config.n_steps)) @ of_time.T
        self.steps = nn.Parameter(steps.detach(), requires_grad=False)
        self.sizes = [len(layer.bias) for layer in layers]
        self.formulation = FORMULATION if fits(list(self.weights)) else ""
        self.inputs = (
            float32("z", "crystals", config.latent),
            float32("terms", "crystals", sum(self.sizes)),
            int32("step", 1),
        )
        self.outputs = (float32("eps", "crystals", config.latent),)

    def forward(self, z: Tensor, terms: Tensor, step: Tensor) -> Tensor:
        """The predicted noise of a step; see `druse_export.models.prior.ResidualUNet`."""
        added = list(torch.split(terms + rows(self.steps, step), self.sizes, dim=1))
        weights = list(self.weights)
        n_down = len(weights) // 2 - 1
        x, skips = z, []
        for weight, term in zip(weights[:n_down], added[:n_down], strict=True):
            x = torch.relu(torch.matmul(x, weight) + term)
            skips.append(x)
        x = torch.relu(torch.matmul(x, weights[n_down]) + added[n_down])
        for weight, term, skip in zip(weights[n_down + 1 : -1], added[n_down + 1 : -1], reversed(skips), strict=True):
            x = torch.relu(torch.matmul(x + skip, weight) + term)
        return torch.matmul(x + z, weights[-1]) + added[-1]


def prior_layers(prior: Prior) -> list[nn.Linear]:
    """The linear layers of the prior's network, in the order in which they act."""
    network = prior.network
    return [*network.down, network.middle, *network.up, network.out]


class ExportedDecoder(Exported):
    """`druse_export.bundles.decoder.Decoder` with its signature."""

    def __init__(self, model: ConCDVAE) -> None:
        super().__init__()
        config = model.config.decoder
        self.decoder = Decoder(model.decoder, model.time, model.config.n_levels)
        self.inputs = (
            float32("latent", "crystals", config.atom),
            int32("level", "crystals"),
            int32("species", "atoms"),
            int32("crystal", "atoms"),
            float32("radial", "edges", config.n_radial),
            float32("legendre", "atoms", "degree", config.n_spherical, "degree"),
            int32("src", "edges"),
            int32("dst", "edges"),
            int32("in_edge", "atoms", "degree"),
            float32("valid", "atoms", "degree"),
            int32("slot", "directed"),
        )
        self.outputs = (float32("force", 2, "edges"), float32("logits", "atoms", config.n_species))
        if _gemnet.widths_fit(config.atom, config.edge, config.triplet, config.bilinear):
            self.formulation = _gemnet.FORMULATION

    def forward(self, *values: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's arguments in order."""
        return self.decoder(*values)


class InPrecision(Exported):
    """A network with weights and products in another type; what goes in and comes out stays float32."""

    def __init__(self, network: Exported, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype
        self.inputs, self.outputs = network.inputs, network.outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The network's arguments in order."""
        given = [value.to(self.dtype) if value.is_floating_point() else value for value in values]
        outputs = self.network(*given)
        return tuple(value.float() for value in (outputs if isinstance(outputs, tuple) else (outputs,)))


class ExportedCGCNN(Exported):
    """A CGCNN on its neighbour table (`druse_export.models.cgcnn.NeighborTable`), arranged for speed.

    Normalisations are folded into the layers before them, and the embedding of elements into a table.
    """

    @torch.no_grad()
    def __init__(self, model: CGCNN) -> None:
        super().__init__()
        config, exact = model.config, copy.deepcopy(model).double().eval()
        self.classifies, self.spacing = config.task == "classification", config.spacing
        self.centres = nn.Buffer(model.centres / config.spacing)
        self.embedding = nn.Buffer(exact.embedding(exact.features).float())
        self.layers = nn.ModuleList(
            _FoldedConvolution(layer) for layer in exact.convolutions if isinstance(layer, Convolution)
        )
        hidden, out, scale = exact.hidden, exact.out, 1.0 if self.classifies else exact.target_std
        self.hidden, self.hidden_bias = _columns(hidden.weight), nn.Buffer(hidden.bias.float())
        self.out = _columns(out.weight * scale)
        self.out_bias = nn.Buffer((out.bias * scale + (0.0 if self.classifies else exact.target_mean)).float())
        self.inputs = (
            int32("species", "atoms"),
            int32("neighbor", "atoms", config.n_neighbors),
            float32("distance", "atoms", config.n_neighbors),
            int32("member", "crystals", "members"),
            float32("share", "crystals", "members"),
        )
        width = (config.n_out,) if self.classifies else ()
        self.outputs = (float32("value", "crystals", *width),)

    def forward(self, species: Tensor, neighbor: Tensor, distance: Tensor, member: Tensor, share: Tensor) -> Tensor:
        """``member`` holds the atoms of each crystal, ``share`` 1 / their number, or 0 in padding.

        Returns values in the property's unit, or probabilities.
        """
        v = rows(self.embedding, species)
        steps = (distance * (1.0 / self.spacing)).reshape(-1, 1) - self.centres
        # no smaller than exp(-80): products with denormal numbers are slow
        gaussians = torch.exp(torch.maximum(-(steps * steps), torch.tensor(-80.0)))
        for layer in self.layers:
            v = layer(v, gaussians, neighbor)
        mean = torch.matmul(share[:, None, :], rows(v, member)).squeeze(1)
        h = _softplus(torch.matmul(_softplus(mean), self.hidden) + self.hidden_bias)
        out = torch.matmul(h, self.out) + self.out_bias
        return functional.softmax(out, dim=-1) if self.classifies else out.squeeze(-1)


class _FoldedConvolution(nn.Module):
    """`druse_export.models.cgcnn.Convolution` in evaluation mode."""

    def __init__(self, layer: Convolution) -> None:
        """``layer`` is in float64."""
        super().__init__()
        scale, shift = _affine(layer.norm_edges)
        weights = torch.chunk(layer.linear.weight * scale[:, None], 2)
        biases = torch.chunk(layer.linear.bias * scale + shift, 2)
        self.gate, self.core = (_Ends(*half) for half in zip(weights, biases, strict=True))
        scale, shift = _affine(layer.norm_atoms)
        self.scale, self.shift = nn.Buffer(scale.float()), nn.Buffer(shift.float())

    def forward(self, v: Tensor, gaussians: Tensor, neighbor: Tensor) -> Tensor:
        """Atoms ``[N, atom]`` and edges ``[N M, gaussians]`` to atoms."""
        gate, core = self.gate(v, gaussians, neighbor), self.core(v, gaussians, neighbor)
        summed = torch.sum(torch.sigmoid(gate) * _softplus(core), dim=1)
        return _softplus(v + summed * self.scale + self.shift)


class _Ends(nn.Module):
    """Half of the linear layer of an edge: what its two atoms and its length give."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        atom = len(weight)
        own, other, edge = torch.split(weight, [atom, atom, weight.shape[1] - 2 * atom], dim=1)
        self.own, self.other, self.edge = _columns(own), _columns(other), _columns(edge)
        self.bias = nn.Buffer(bias.float())

    def forward(self, v: Tensor, gaussians: Tensor, neighbor: Tensor) -> Tensor:
        """``[N, M, atom]``."""
        n_atoms, width = neighbor.shape
        other = rows(torch.matmul(v, self.other), neighbor).flatten(0, 1)
        edges = torch.addmm(other, gaussians, self.edge).reshape(n_atoms, width, -1)
        return edges + (torch.matmul(v, self.own) + self.bias)[:, None]


def _columns(weight: Tensor) -> nn.Buffer:
    """A weight as the right factor of a product, in float32."""
    return nn.Buffer(weight.T.float().contiguous())


def _affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """What a normalisation multiplies by and adds, in evaluation mode."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise InputError("a normalisation that keeps no statistics cannot be folded; train with them")
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) to 6e-7: ONNX Runtime's own takes four times as long on a CPU."""
    return torch.relu(x) - torch.log(torch.sigmoid(torch.abs(x)))
