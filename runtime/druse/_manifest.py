"""``manifest.json``: everything that a bundle says about itself, typed. `druse.bundle` is the public face."""

import itertools
import posixpath
from typing import Literal

import msgspec

from druse.conditions import Property, ScalarProperty
from druse.errors import InputError

SCHEMA = 1
"""Version of the format. A change that an older Druse would misread must raise it."""

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"
CONDITIONS = "conditions.parquet"
LARGEST_FILE = 2**31
LARGEST_MANIFEST = 2**24

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
"""Of products. tf32 is float32 in memory with products of its leading 10 bits, and no matter of the graph."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of the bundle."""

    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise ValueError("`sha256` must be 64 hexadecimal digits")
        if not 0 <= self.bytes <= LARGEST_FILE:
            raise ValueError(f"`bytes` must be from 0 to {LARGEST_FILE:,}, got {self.bytes:,}")


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An input or output of a network; a name in ``shape`` stands for any length, the same wherever it occurs."""

    name: str
    dtype: Literal["float32", "int32"]
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if not all(isinstance(n, str) or 0 < n <= 65536 for n in self.shape):
            raise ValueError(f"`shape` of {self.name!r} must hold names and lengths from 1 to 65,536, got {self.shape}")


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An ONNX file and what goes in and comes out.

    Attributes:
        file: path in the bundle.
        precisions: files of the same network whose weights and products are in another precision, which is written in
            the graph; what goes in and comes out stays float32.
        formulation: name of what it computes, where Druse has native code for that and its weights have agreed names
            (`druse._prior.FORMULATION`); empty otherwise.
    """

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precisions: dict[Precision, str] = {}
    formulation: str = ""

    def __post_init__(self) -> None:
        if "fp32" in self.precisions or "tf32" in self.precisions:
            raise ValueError("`precisions` must be other ones than fp32 and tf32, which are the network's own file")

    @property
    def every_file(self) -> tuple[str, ...]:
        """The network's own file, and those in other precisions."""
        return (self.file, *self.precisions.values())


class GraphSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The decoder's graph, see `druse.graphs.radius_graph`, and its two bases, see `druse.basis`."""

    mode: Literal["exact", "upstream"]
    symmetrise: Literal["union", "upstream"]
    cutoff: float
    max_neighbors: int
    n_radial: int
    n_spherical: int
    shell_tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.cutoff <= 100 and 1 <= self.max_neighbors <= 1000):
            raise ValueError("`cutoff` must be up to 100 Angstrom and `max_neighbors` from 1 to 1000")
        if not (2 <= self.n_radial <= 4096 and 1 <= self.n_spherical <= 64):
            raise ValueError("`n_radial` must be from 2 to 4096 and `n_spherical` from 1 to 64")


class PriorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A prior p(z | properties): a DDPM.

    Attributes:
        conditions: properties, in order.
        condition: network from properties to ``terms``, what they add to every layer of ``network``.
        network: z, ``terms`` and the step's number to the predicted noise.
        betas: variances of the forward process, first step first.
    """

    conditions: tuple[Property, ...]
    condition: Network
    network: Network
    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.betas or not all(0 < beta < 1 for beta in self.betas):
            raise ValueError("`betas` must be numbers between 0 and 1")


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the weights come from.

    Attributes:
        source: ``trained`` by Druse, or ``imported`` from a checkpoint of others.
        weights: SHA-256 of each file of weights that went in, by its name.
        data: name of the training data.
        steps, epochs: of the training, if known.
        figures: on validation data, by name.
        created_by: name and version of what wrote the bundle.
        note: anything else.
    """

    source: Literal["trained", "imported"]
    weights: dict[str, str] = {}
    data: str = ""
    steps: int | None = None
    epochs: int | None = None
    figures: dict[str, float] = {}
    created_by: str = ""
    note: str = ""


class ConCDVAEManifest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="con-cdvae"
):
    """A Con-CDVAE.

    Attributes:
        schema: version of this format.
        name: of the model.
        licence: SPDX identifier or text.
        files: every file of the bundle but this one, by its path.
        conditions, predicted: properties, in the order of the networks' inputs and outputs.
        max_atoms: per crystal.
        n_species: elements that the logits have, hydrogen first.
        latent: width of z.
        sigmas: noise levels in Angstrom, largest first.
        type_sigmas: of the types.
        graph: the decoder's.
        condition: properties and z to z_con (eqs 10 and 11).
        heads: z_con to logits of the atom count, a lattice (lengths over the cube root of the atom count in Angstrom,
            and angles in degrees) and composition logits.
        latent_projection: z_con to what the decoder takes of it.
        predictor: z to each predicted property, scalars in their unit, classes as probabilities (eq. 12).
        decoder: one evaluation of the score network.
        priors: by name.
        tolerances: largest deviation from the recorded outputs relative to the largest of them, by precision.
        provenance: of the weights.
    """

    schema: int
    name: str
    licence: str
    files: dict[str, File]
    conditions: tuple[Property, ...]
    predicted: tuple[Property, ...]
    max_atoms: int
    n_species: int
    latent: int
    sigmas: tuple[float, ...]
    type_sigmas: tuple[float, ...]
    graph: GraphSpec
    condition: Network
    heads: Network
    latent_projection: Network
    predictor: Network | None
    decoder: Network
    priors: dict[str, PriorSpec]
    tolerances: dict[Precision, float]
    provenance: Provenance

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 < sigma <= 1e3 for sigma in (*self.sigmas, *self.type_sigmas)):
            raise ValueError("`sigmas` must be numbers above 0 and up to 1000")
        if any(b >= a for a, b in itertools.pairwise(self.sigmas)):
            raise ValueError("`sigmas` must fall from the first to the last")
        if not (1 <= self.max_atoms <= 10000 and 1 <= self.n_species <= 118 and 1 <= self.latent <= 65536):
            raise ValueError("`max_atoms`, `n_species` or `latent` is out of range")
        if not all(name.isidentifier() for name in self.priors):
            raise ValueError("names of `priors` must be letters, digits and underscores")

    @property
    def networks(self) -> dict[str, Network]:
        """Every network, by its role; those of a prior as ``priors/NAME/condition`` and ``priors/NAME/network``."""
        found = {
            "condition": self.condition,
            "heads": self.heads,
            "latent_projection": self.latent_projection,
            "decoder": self.decoder,
        }
        if self.predictor is not None:
            found["predictor"] = self.predictor
        for name, prior in self.priors.items():
            found[f"priors/{name}/condition"] = prior.condition
            found[f"priors/{name}/network"] = prior.network
        return found


class CGCNNManifest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="cgcnn"
):
    """A CGCNN: one property of a crystal, for screening.

    Attributes:
        schema, name, licence, files, tolerances, provenance: as of `ConCDVAEManifest`.
        target: the property that it gives, in its unit.
        task: ``regression``, or ``classification`` with probabilities of False and True.
        threshold: in a classification, the value above which is True.
        version: of the model, as its maker counts; part of the names of its columns.
        max_neighbors: of the graph, exactly; missing ones are filled up at ``cutoff`` + 1 Angstrom.
        cutoff: Angstrom.
        network: the CGCNN.
    """

    schema: int
    name: str
    licence: str
    files: dict[str, File]
    target: ScalarProperty
    task: Literal["regression", "classification"]
    max_neighbors: int
    cutoff: float
    network: Network
    tolerances: dict[Precision, float]
    provenance: Provenance
    threshold: float | None = None
    version: str = "1"

    def __post_init__(self) -> None:
        if not (0 < self.cutoff <= 100 and 1 <= self.max_neighbors <= 1000):
            raise ValueError("`cutoff` must be up to 100 Angstrom and `max_neighbors` from 1 to 1000")
        if not is_version(self.version):
            raise ValueError("`version` must be up to 40 characters that can be printed, without |")

    @property
    def networks(self) -> dict[str, Network]:
        """The one network."""
        return {"network": self.network}


Manifest = ConCDVAEManifest | CGCNNManifest


class _Version(msgspec.Struct):
    """What is read first: an unknown version may have unknown fields."""

    schema: int


def decode(text: bytes, name: str) -> Manifest:
    """A manifest from JSON.

    Args:
        text: the file.
        name: of the bundle, for errors.

    Raises:
        InputError: another schema version, an unknown or missing field, a value of the wrong type or range, or a path
            that is not a plain one inside the bundle.
    """
    if len(text) > LARGEST_MANIFEST:
        raise InputError(f"{name}: {MANIFEST} is larger than {LARGEST_MANIFEST:,} bytes; do not use it")
    try:
        version = msgspec.json.decode(text, type=_Version).schema
        if version != SCHEMA:
            raise InputError(
                f"{name}: the bundle has schema version {in_one_line(version)}, this Druse reads {SCHEMA}; "
                f"{'update Druse' if version > SCHEMA else 'build the bundle again'}"
            )
        manifest: Manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{name}: {MANIFEST} cannot be used: {in_one_line(error)}; copy or build the bundle again"
        ) from error
    for path in manifest.files:
        check_path(path, name)
    if sum(file.bytes for file in manifest.files.values()) > LARGEST_FILE:
        raise InputError(f"{name}: the files are larger than {LARGEST_FILE:,} bytes together; do not use it")
    for network in manifest.networks.values():
        for path in network.every_file:
            if path not in manifest.files:
                raise InputError(
                    f"{name}: {MANIFEST} names the network {in_one_line(path)} but lists no such file; "
                    "build the bundle again"
                )
    return manifest


def check_path(path: str, name: str) -> None:
    """Refuse a path in a manifest that is not a plain one, or is the manifest's own.

    Raises:
        InputError: see `is_plain`.
    """
    if not is_plain(path) or path == MANIFEST:
        raise InputError(
            f"{name}: the path '{in_one_line(path)}' in {MANIFEST} leaves the bundle or is malformed; do not use it"
        )


def is_version(text: str) -> bool:
    """Whether a text can be a model's version, and so a part of the name of a column."""
    return 0 < len(text) <= 40 and text.isprintable() and "|" not in text


def is_plain(path: str) -> bool:
    """Whether a path is relative, in its shortest form, does not lead upwards, and means the same on any system."""
    if not path.isprintable() or not 0 < len(path.encode()) <= 240 or "\\" in path or ":" in path:
        return False
    return path == posixpath.normpath(path) and not path.startswith(("/", "../")) and path not in (".", "..")


def in_one_line(text: object) -> str:
    """What came from a file, fit for an error: printable, without line breaks, not long."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[:500])
    return line if len(line) <= 160 else f"{line[:160]}..."
