"""Bundles: what passes from PyTorch to the runtime, a folder of ONNX files with a manifest, or a zip of it.

Opening one reads every file once, compares its hash, and looks through its networks; nothing is unpickled or executed,
and what was read is what is used later. Whoever wrote the manifest also wrote the hashes: they find damage, not malice.
Against malice stand the limits on sizes, the list of allowed operations (`druse._onnx`), and that every file is data.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from druse._manifest import (
    CONDITIONS,
    LARGEST_MANIFEST,
    MANIFEST,
    REFERENCE,
    SCHEMA,
    CGCNNManifest,
    ConCDVAEManifest,
    File,
    GraphSpec,
    Manifest,
    Network,
    Precision,
    PriorSpec,
    Provenance,
    Tensor,
    decode,
    in_one_line,
    is_plain,
)
from druse._onnx import check_network
from druse.errors import InputError

__all__ = [
    "CONDITIONS",
    "MANIFEST",
    "REFERENCE",
    "SCHEMA",
    "Bundle",
    "CGCNNManifest",
    "ConCDVAEManifest",
    "File",
    "GraphSpec",
    "Manifest",
    "Network",
    "Precision",
    "PriorSpec",
    "Provenance",
    "Tensor",
]


class Bundle:
    """An opened bundle: its manifest, and its files in memory."""

    def __init__(self, name: str, text: bytes, files: dict[str, bytes], path: str = "") -> None:
        self.name = name
        self.path = path
        """Where it was opened, in full; empty for the one that comes with Druse."""
        self.manifest = decode(text, name)
        self.digest = hashlib.sha256(text).hexdigest()
        """SHA-256 of the manifest, and through it of every file."""
        self._text, self._files = text, files

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {type(self.manifest).__name__}, sha256 {self.digest[:12]})"

    @classmethod
    def open(cls, path: Any) -> "Bundle":
        """Read a bundle.

        Args:
            path: a folder, or a ``.zip`` of one.

        Raises:
            InputError: it is no bundle, is of another schema version, or has been changed; one sentence says where.
        """
        place = Path(path)
        if place.is_dir():
            source: _Source = _Folder(place)
        elif place.is_file():
            source = _Zip(place)
        else:
            raise InputError(f"{place} does not exist as folder or file; give the folder or .zip of a bundle")
        with source:
            text = source.read(MANIFEST, LARGEST_MANIFEST)
            manifest = decode(text, source.name)
            files = {}
            for name, file in manifest.files.items():
                content = source.read(name, file.bytes)
                if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
                    raise InputError(
                        f"{source.name}: {name} is not the file that {MANIFEST} describes (other size or SHA-256); "
                        "copy or build the bundle again"
                    )
                files[name] = content
            extra = source.names() - files.keys() - {MANIFEST}
            if extra:
                raise InputError(f"{source.name}: {in_one_line(min(extra))} is not listed in {MANIFEST}; remove it")
        for network in manifest.networks.values():
            for path in network.every_file:
                check_network(files[path], f"{source.name}: {path}")
        return cls(source.name, text, files, str(place.resolve()))

    @classmethod
    def embedded(cls, name: str = "default") -> "Bundle":
        """A bundle that comes with Druse.

        Args:
            name: ``default`` generates crystals of up to 20 atoms by formation energy, trained on MP-20;
                `druse.properties.EMBEDDED` are the property models.

        Raises:
            InputError: this build of Druse has no such one.
        """
        with resources.as_file(resources.files("druse") / "data" / f"{name}.zip") as path:
            if not path.is_file():
                raise InputError(f"this build of Druse comes without the bundle {name!r}; give one")
            opened = cls.open(path)
        return cls(opened.name, opened._text, opened._files)

    @property
    def con_cdvae(self) -> ConCDVAEManifest:
        """The manifest of a generator.

        Raises:
            InputError: the bundle holds another kind of model.
        """
        if not isinstance(self.manifest, ConCDVAEManifest):
            raise InputError(f"{self.name} holds a property model (CGCNN); this needs a Con-CDVAE bundle")
        return self.manifest

    def read(self, name: str) -> bytes:
        """A file, as it was when the bundle was opened.

        Raises:
            InputError: the bundle has no such file.
        """
        if name not in self._files:
            raise InputError(f"{self.name} has no file {name}; it has {', '.join(sorted(self._files))}")
        return self._files[name]

    def reference(self) -> dict[str, np.ndarray]:
        """Recorded inputs and outputs, ``role/inputs/name`` and ``role/outputs/name``; see `druse.model.verify`.

        Raises:
            InputError: the file is malformed or claims more than it holds.
        """
        return read_arrays(self.read(REFERENCE), f"{self.name}: {REFERENCE}")

    def write_zip(self, path: Path) -> None:
        """The bundle as one ``.zip``, the same bytes each time; appears whole or not at all."""
        part = path.with_name(path.name + ".part")
        try:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in sorted({MANIFEST: self._text, **self._files}.items()):
                    member = zipfile.ZipInfo(name)
                    member.external_attr = 0o644 << 16  # without it, unzip makes files that nobody may read
                    archive.writestr(member, data, zipfile.ZIP_DEFLATED)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def read_arrays(content: bytes, name: str) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, without pickles, and none larger than what the file holds.

    Raises:
        InputError: it is no such file.
    """
    try:
        return dict(_arrays(content))
    except Exception as error:  # neither zipfile nor NumPy documents what it raises and what passes through it
        raise InputError(
            f"{name} cannot be read as arrays: {in_one_line(error)}; copy or build the bundle again"
        ) from error


def _arrays(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > 64 * len(content) + 2**20:
            raise ValueError("it would unpack to more than 64 times its size")
        for member in archive.infolist():
            data = io.BytesIO(_unpacked(archive, member, member.file_size))
            version = np.lib.format.read_magic(data)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(data)
            values = data.read()
            if dtype.kind not in "fiub" or len(values) != dtype.itemsize * math.prod(shape):
                raise ValueError(f"{member.filename} does not hold what its header says")
            array = np.frombuffer(values, dtype).reshape(shape, order="F" if fortran else "C")
            yield member.filename.removesuffix(".npy"), array


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """At most ``limit`` bytes of a member and one more; never much more in memory, whatever it would unpack to."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a limit
        raise NotImplementedError(f"packed by method {member.compress_type}, not by deflate")
    with archive.open(member) as file:
        return file.read(min(limit, member.file_size) + 1)


class _Source:
    """Where the files of a bundle lie."""

    name: str

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def names(self) -> set[str]:
        raise NotImplementedError

    def read(self, name: str, limit: int) -> bytes:
        """At most ``limit`` bytes and one more, so that a longer file is seen to be longer."""
        raise NotImplementedError

    def missing(self, name: str) -> InputError:
        advice = "give the folder that holds it" if name == MANIFEST else "copy or build the bundle again"
        return InputError(f"{self.name}: {name} is missing; {advice}")


class _Folder(_Source):
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name or str(path)

    def names(self) -> set[str]:
        found = (path for path in self.path.rglob("*") if not path.is_dir() or path.is_symlink())
        return {path.relative_to(self.path).as_posix() for path in found}

    def read(self, name: str, limit: int) -> bytes:
        path = self.path.joinpath(*PurePosixPath(name).parts)
        try:
            if not path.is_file():
                raise self.missing(name)
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise InputError(f"{self.name}: {name} is a link that leaves the bundle; put the file itself there")
            with path.open("rb") as file:
                return file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{self.name}: {name} cannot be read: {error.strerror}; make it readable") from error


class _Zip(_Source):
    """An archive of a folder, with or without the folder's own name before every path."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self.archive = zipfile.ZipFile(path)
        except Exception as error:  # zipfile documents neither what it raises nor what passes through it
            raise InputError(
                f"{self.name} is no bundle: {in_one_line(error)}; give a folder with a {MANIFEST}, or a .zip of one"
            ) from error
        infos = self.archive.infolist()
        for info in infos:
            if not is_plain(info.filename.removesuffix("/")):
                raise InputError(
                    f"{self.name}: the path '{in_one_line(info.filename)}' in the archive leaves it or is malformed; "
                    "do not use it"
                )
        if len({info.filename for info in infos}) != len(infos):
            raise InputError(f"{self.name}: two files have the same name; build the archive again")
        self.members = {info.filename: info for info in infos if not info.is_dir()}
        roots = {name.partition("/")[0] for name in self.members}
        self.root = f"{roots.pop()}/" if len(roots) == 1 and MANIFEST not in self.members else ""

    def __exit__(self, *error: object) -> None:
        self.archive.close()

    def names(self) -> set[str]:
        return {name.removeprefix(self.root) for name in self.members}

    def read(self, name: str, limit: int) -> bytes:
        member = self.members.get(self.root + name)
        if member is None:
            raise self.missing(name)
        try:
            return _unpacked(self.archive, member, limit)
        except Exception as error:  # see above
            raise InputError(
                f"{self.name}: {name} cannot be unpacked: {in_one_line(error)}; copy or build the bundle again"
            ) from error
