"""Reading PyTorch checkpoints without running anything in them.

PyTorch's restricted unpickler (``weights_only``) builds tensors and plain containers and refuses every global that it
does not know. Upstream's files also hold configuration objects of OmegaConf, a scaler and NumPy scalars; these are
mapped to inert classes that only keep their state. Anything else is an error that names it.
"""

import collections
import pickle
import pickletools
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from druse.errors import InputError


class Inert:
    """Stands for an object of a class that is not imported: it keeps what the file says of it and does nothing."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> "Inert":
        """Takes any arguments and drops them."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        values = state[1] if isinstance(state, tuple) and len(state) == 2 and state[0] is None else state
        if isinstance(values, dict):
            vars(self).update({str(key): value for key, value in values.items()})


class ConfigMapping(Inert):
    """``omegaconf.DictConfig``."""


class ConfigSequence(Inert):
    """``omegaconf.ListConfig``."""


class ConfigValue(Inert):
    """A leaf of OmegaConf's tree."""


class Scaler(Inert):
    """Upstream's standard scaler, with ``means`` and ``stds``."""


class NumpyType(Inert):
    """``numpy.dtype``: its character code, such as f8."""

    code = ""

    def __new__(cls, code: str = "", *_flags: Any) -> "NumpyType":
        """Keeps the code."""
        kept = object.__new__(cls)
        kept.code = str(code)
        return kept


def numpy_scalar(kind: NumpyType, data: bytes) -> float | int:
    """A NumPy scalar as a Python number."""
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}
    if kind.code not in formats:
        raise pickle.UnpicklingError(f"a NumPy scalar of type {kind.code}")
    (number,) = struct.unpack(formats[kind.code], data)
    return number


def latin1(text: str, encoding: str) -> bytes:
    """How old pickles hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding}")
    return text.encode("latin1")


_LEAVES = ("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "PathNode", "BytesNode", "EnumNode")
_INERT: list[Any] = [
    (ConfigMapping, "omegaconf.dictconfig.DictConfig"),
    (ConfigSequence, "omegaconf.listconfig.ListConfig"),
    *((ConfigValue, f"omegaconf.nodes.{name}") for name in _LEAVES),
    (Inert, "omegaconf.base.ContainerMetadata"),
    (Inert, "omegaconf.base.Metadata"),
    (Inert, "typing.Any"),
    (NumpyType, "numpy.dtype"),
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    (latin1, "_codecs.encode"),
    (Scaler, "concdvae.common.data_utils.StandardScalerTorch"),
    (Scaler, "cdvae.common.data_utils.StandardScalerTorch"),
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (dict, list, tuple, int)
        for module in ("builtins", "__builtin__")
    ),
    (collections.defaultdict, "collections.defaultdict"),
    (int, "__builtin__.long"),
]


def plain(value: Any) -> Any:
    """An OmegaConf tree as dictionaries, lists and values."""
    if isinstance(value, ConfigMapping):
        content = vars(value).get("_content")
        return {str(k): plain(v) for k, v in content.items()} if isinstance(content, dict) else {}
    if isinstance(value, ConfigSequence):
        content = vars(value).get("_content")
        return [plain(v) for v in content] if isinstance(content, list) else []
    if isinstance(value, ConfigValue):
        return vars(value).get("_val")
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _first_forbidden(path: Path) -> str | None:
    """The first global that a bare pickle names and may not; read, not run, and only for the sake of the error."""
    allowed = {name for _, name in _INERT}
    strings: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if isinstance(argument, str) and "UNICODE" in operation.name:
                strings.append(argument)
            name = None
            if operation.name == "GLOBAL":
                name = str(argument).replace(" ", ".")
            elif operation.name == "STACK_GLOBAL" and len(strings) >= 2:
                name = ".".join(strings[-2:])
            if name is not None and name not in allowed:
                return name
    except ValueError:  # no pickle after all
        return None
    return None


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint holds: tensors, plain values, and `Inert` objects.

    Raises:
        InputError: the file is missing, is no checkpoint, or names a class or function that is not allowed.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is not in {path.parent}; give the folder that holds the checkpoint")
    try:
        with torch.serialization.safe_globals(_INERT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol, which it then reads or refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in damaged texts
            named = found[1] if found else _first_forbidden(path)
        reason = f"it names {named}, which is not allowed" if named else "it is not made of tensors and plain values"
        raise InputError(f"{path.name} is refused, and nothing in it was run: {reason}") from error
    except OSError:
        raise
    except Exception as error:  # whatever a damaged stream makes PyTorch's unpickler stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path.name} is not a checkpoint that can be read: {reason[:200]}") from error
