"""Tensors out of a PyTorch file without PyTorch and without unpickling.

A ``.pt`` file is a zip archive of raw numbers beside a pickle that says what they are. Here that pickle is read by an
interpreter of its own, which makes dictionaries, lists, tuples and plain values, notes what is a tensor, and knows no
other calls: nothing is imported, and no object of the file is built. Configuration that the authors of Con-CDVAE leave
in their files (argparse, OmegaConf, EasyDict, PyTorch Geometric) becomes `Opaque`; any other name is refused.
"""

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from druse._archives import Bounded
from druse._limits import LIMITS, Limits
from druse.errors import InputError

__all__ = ["Opaque", "Tensor", "read_torch"]

_TYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
}
_REBUILD = "torch._utils._rebuild_tensor_v2"
_CONTAINERS: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": dict,
    "builtins.dict": dict,
    "builtins.list": list,
}
_OPAQUE = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|easydict\.EasyDict|collections\.(defaultdict|Counter|deque)"
    r"|typing\.Any|(omegaconf|torch_geometric|torch_sparse)(\.[A-Za-z_]\w*)+"
    r"|pathlib\.(PosixPath|WindowsPath|PurePosixPath|PureWindowsPath)"
    r"|numpy\.(dtype|ndarray)|numpy\._?core\.multiarray\.(scalar|_reconstruct)|_codecs\.encode"
    r"|torch\.(device|Size|float32|float64|float16|bfloat16|int64|int32|bool)|torch\.BFloat16Storage"
    r"|torch\.serialization\._get_layout|torch\._utils\._rebuild_parameter"
    r"|builtins\.(set|frozenset|int|float|bool|str|tuple|slice|complex|bytearray)"
)
"""Names that a result file may hold; nothing behind them is imported."""


class Opaque:
    """Stands for an object of the file that was not built."""

    def __init__(self, name: str) -> None:
        self.name = name


class Tensor(NamedTuple):
    """Where the numbers of a tensor lie: member of the archive, their type, and the view of them."""

    member: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):  # noqa: N818
    """Something in the pickle that is no data."""


def read_torch(path: Path, names: Callable[[str], bool], *, limits: Limits = LIMITS) -> dict[str, np.ndarray]:
    """The tensors of the dictionary that a file holds, as arrays.

    Args:
        path: of a file by ``torch.save``.
        names: says by its key whether a tensor is wanted.
        limits: of the pickle.

    Raises:
        InputError: it is no such file, or something in it is refused; nothing in it was run.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(Bounded(file, limits.directory)) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in infos if name.count("/") <= 1 and name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise InputError(f"{path.name} is no file by torch.save: its archive has no data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in infos and _member(archive, infos[f"{root}byteorder"], 16) != b"little":
                raise InputError(f"{path.name} has numbers in another byte order; save it on a common machine")
            found = _interpret(_member(archive, infos[pickles[0]], limits.pickle))
            if not isinstance(found, Mapping):
                raise InputError(f"{path.name} holds no dictionary of tensors")
            tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor) and names(str(key))}
            return {key: _array(archive, infos, root, tensor) for key, tensor in tensors.items()}
    except _Refused as error:
        raise InputError(f"{path.name} is refused, and nothing in it was run: {error}") from error
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path.name} is broken, or by PyTorch before 1.6 ({error}); load it and save it again with a newer one"
        ) from error
    except (OSError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} cannot be read: {error}") from error


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Refused(f"{info.filename} is compressed, which torch.save never does")
    if info.file_size > limit:
        raise _Refused(f"{info.filename} has {info.file_size:,} bytes, more than {limit:,}")
    with archive.open(info) as member:
        return member.read(limit)


def _array(archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], root: str, tensor: Tensor) -> np.ndarray:
    name = f"{root}data/{tensor.member}"
    if not tensor.dtype:
        raise _Refused("a tensor of a type that is not read; save it as float32")
    if name not in infos:
        raise _Refused(f"{name} is missing")
    numbers = np.frombuffer(_member(archive, infos[name], infos[name].file_size), tensor.dtype)
    shape, strides = tensor.shape, tensor.strides
    if 0 in shape:
        return np.zeros(shape, tensor.dtype)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if min((*shape, *strides, tensor.offset), default=0) < 0 or last >= len(numbers) or math.prod(shape) > len(numbers):
        raise _Refused(f"a tensor of shape {list(shape)} out of {len(numbers)} numbers")
    size = numbers.itemsize
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, [stride * size for stride in strides])
    return np.ascontiguousarray(view)


class _Name(NamedTuple):
    """A class or function that the pickle names, as text."""

    name: str


_MARK = object()
_PLAIN = (
    *("BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "INT", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _interpret(content: bytes) -> Any:
    """What a pickle describes, with names left names."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for operation, argument, _ in pickletools.genops(io.BytesIO(content)):
            name = operation.name
            if name in _PLAIN:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]  # type: ignore[index]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])  # type: ignore[index]
            elif name in ("GLOBAL", "INST"):
                stack.append(_named(".".join(str(argument).split(" ", 1)).replace("__builtin__", "builtins")))
            elif name == "STOP":
                return stack.pop()
            elif name not in ("PROTO", "FRAME"):
                _do(name, stack)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise _Refused(f"its pickle is broken ({error})") from error
    raise _Refused("its pickle has no end")


def _named(name: str) -> _Name:
    if name in (_REBUILD, *_TYPES, *_CONTAINERS) or _OPAQUE.fullmatch(name):
        return _Name(name)
    raise _Refused(f"it names {name[:100]}, which is not allowed")


def _do(name: str, stack: list[Any]) -> None:
    """One step that works on the stack."""
    if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
    elif name == "EMPTY_SET":
        stack.append(Opaque("set"))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        n = int(name[-1])
        if _MARK in stack[-n:]:
            raise ValueError("a tuple without its elements")
        stack[-n:] = [tuple(stack[-n:])]
    elif name in ("TUPLE", "LIST", "DICT", "FROZENSET", "ADDITEMS", "APPENDS", "SETITEMS"):
        items = _since_mark(stack)
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "LIST":
            stack.append(items)
        elif name == "DICT":
            stack.append(_filled({}, items))
        elif name == "FROZENSET":
            stack.append(Opaque("frozenset"))
        elif name == "APPENDS":
            _appended(stack[-1], items)
        elif name == "SETITEMS":
            _filled(stack[-1], items)
    elif name == "APPEND":
        value = stack.pop()
        _appended(stack[-1], [value])
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        _filled(stack[-1], [key, value])
    elif name == "POP":
        stack.pop()
    elif name == "POP_MARK":
        _since_mark(stack)
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("a name that is no text")
        stack.append(_named(f"{module}.{attribute}"))
    elif name == "BUILD":
        stack.pop()
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, called = stack.pop(), stack.pop()
        stack.append(_called(called, arguments))
    elif name == "NEWOBJ_EX":
        _, arguments, called = stack.pop(), stack.pop(), stack.pop()
        stack.append(_called(called, arguments))
    else:
        raise _Refused(f"its pickle has the operation {name}, which is not allowed")


def _since_mark(stack: list[Any]) -> list[Any]:
    items: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        items.append(value)
    return items[::-1]


def _appended(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise TypeError("elements of what is no list")


def _filled(target: Any, items: list[Any]) -> Any:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int):  # no other key is asked for; a tuple's hash may take any time
                target[key] = value
    elif not isinstance(target, Opaque):
        raise TypeError("keys of what is no dictionary")
    return target


def _called(called: Any, arguments: Any) -> Any:
    """A tensor, an empty container, or what is left closed."""
    if not isinstance(called, _Name):
        return called if isinstance(called, Opaque) else Opaque("object")
    if called.name == _REBUILD:
        (member, dtype), offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 8 or any(type(n) is not int for n in numbers):
            raise ValueError("a tensor of no shape")
        return Tensor(member, dtype, offset, tuple(shape), tuple(strides))
    return _CONTAINERS[called.name]() if called.name in _CONTAINERS else Opaque(called.name)


def _storage(identity: Any) -> tuple[str, str]:
    kind, name, key = identity[:3]
    if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str):
        raise ValueError("a storage of no kind")
    return key, _TYPES.get(name.name, "")
