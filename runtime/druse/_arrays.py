"""Array types, named once, and the one place where arrays from outside are checked.

Shapes are types (jaxtyping); the tests check them at run time. Batches are CSR: crystal ``b`` of a batch owns the atoms
``offsets[b]:offsets[b + 1]``.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from druse.errors import InputError

__all__ = ["Bool", "Float32", "Float64", "Int32", "Int64", "UInt8", "UInt32", "UInt64"]  # and all that is defined below

# A type checker sees what jaxtyping would show it, an array's type with its shape beside it. Jaxtyping is no
# dependency, so programs that use Druse would see Any. Tests, which import it first, check shapes. At run time nothing
# reads them, and importing it would double the time that `import druse` takes (0.2 s on top of NumPy's 0.2 s).
if TYPE_CHECKING:
    from typing import Annotated as Bool
    from typing import Annotated as Float32
    from typing import Annotated as Float64
    from typing import Annotated as Int32
    from typing import Annotated as Int64
    from typing import Annotated as UInt8
    from typing import Annotated as UInt32
    from typing import Annotated as UInt64
elif "jaxtyping" in sys.modules:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float32 as Float32
    from jaxtyping import Float64 as Float64
    from jaxtyping import Int32 as Int32
    from jaxtyping import Int64 as Int64
    from jaxtyping import UInt8 as UInt8
    from jaxtyping import UInt32, UInt64
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Float32 = Float64 = Int32 = Int64 = UInt8 = UInt32 = UInt64 = _Unchecked

Frac: TypeAlias = Float64[np.ndarray, "atoms 3"]
Cells: TypeAlias = Float64[np.ndarray, "crystals 3 3"]
Offsets: TypeAlias = Int64[np.ndarray, "crystals_plus_1"]
Species: TypeAlias = Int32[np.ndarray, "atoms"]
CrystalIds: TypeAlias = UInt64[np.ndarray, "crystals"]
Status: TypeAlias = UInt32[np.ndarray, "crystals"]
Counts: TypeAlias = Int64[np.ndarray, "crystals"]
EdgeIndex: TypeAlias = Int32[np.ndarray, "edges"]
Image: TypeAlias = Int32[np.ndarray, "edges 3"]
Distance: TypeAlias = Float32[np.ndarray, "edges"]
UnitVector: TypeAlias = Float32[np.ndarray, "edges 3"]
AtomVector: TypeAlias = Float32[np.ndarray, "atoms 3"]
Latents: TypeAlias = Float32[np.ndarray, "crystals latent"]
SpeciesLogits: TypeAlias = Float32[np.ndarray, "atoms species"]
SpeciesMask: TypeAlias = UInt8[np.ndarray, "crystals species"]


def _shape(dimensions: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(str(d) for d in dimensions) + "]"


def as_array(name: str, value: Any, dtype: Any, *dimensions: int | str, hint: str = "") -> Any:
    """``value`` as a C-contiguous array of ``dtype``, copied only where that is needed.

    Args:
        name: the argument's name, for the error.
        value: anything that NumPy reads as an array of numbers.
        dtype: wanted type. Integers may become floats and floats change width; floats never become integers.
        dimensions: wanted shape; a string stands for any length and names it.
        hint: what to do about a wrong shape.

    Raises:
        InputError: wrong number of dimensions, wrong length, or values of another kind.
    """
    wanted = np.dtype(dtype)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`{name}` must be an array of shape {_shape(dimensions)}, got {type(value).__name__}"
        ) from error
    if isinstance(value, np.ndarray) and np.any(getattr(value, "mask", False)):
        raise InputError(f"`{name}` has masked values, which count for nothing here; fill them or leave them out")
    allowed = "iu" if wanted.kind in "iu" else "iuf"
    if array.dtype.kind not in allowed and array.size > 0:
        kind = "integers" if wanted.kind in "iu" else "real numbers"
        raise InputError(f"`{name}` must hold {kind} ({wanted}), got {array.dtype}; convert it first")
    fits = array.ndim == len(dimensions) and all(
        isinstance(want, str) or want == got for want, got in zip(dimensions, array.shape, strict=True)
    )
    if not fits:
        advice = f"; {hint}" if hint else ""
        raise InputError(f"`{name}` must have shape {_shape(dimensions)}, got {_shape(array.shape)}{advice}")
    if wanted.kind in "iu" and array.size > 0:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"`{name}` must fit {wanted}, got values from {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=wanted)


def as_offsets(name: str, value: Any, total: int, items: str = "atoms") -> Offsets:
    """CSR offsets ``[crystals + 1]`` that start at 0, never fall, and end at ``total``."""
    offsets: Offsets = as_array(name, value, np.int64, "crystals + 1")
    if offsets.size == 0 or offsets[0] != 0:
        first = "nothing" if offsets.size == 0 else str(offsets[0])
        raise InputError(f"`{name}` must start with 0, got {first}; for one crystal pass [0, number of {items}]")
    if np.any(np.diff(offsets) < 0):
        crystal = int(np.argmax(np.diff(offsets) < 0))
        raise InputError(
            f"`{name}` must not fall (a crystal cannot have a negative number of {items}), got "
            f"{offsets[crystal]} followed by {offsets[crystal + 1]} at crystal {crystal}; pass running totals"
        )
    if offsets[-1] != total:
        raise InputError(f"`{name}` must end at the number of {items}, {total}, got {offsets[-1]}")
    return offsets


def as_batch(frac: Any, cells: Any, offsets: Any) -> tuple[Frac, Cells, Offsets]:
    """The three arrays of a batch of crystals as native code needs them.

    Raises:
        InputError: they are wrong or do not fit together.
    """
    cells_: Cells = as_array("cells", cells, np.float64, "crystals", 3, 3, hint="wrap a single cell as cells[None]")
    frac_: Frac = as_array("frac", frac, np.float64, "atoms", 3)
    offsets_ = as_offsets("offsets", offsets, len(frac_))
    if len(offsets_) != len(cells_) + 1:
        raise InputError(
            f"`offsets` must have one entry more than there are cells, {len(cells_) + 1}, got {len(offsets_)}"
        )
    return frac_, cells_, offsets_


def one_of(name: str, value: Any, allowed: dict[str, int]) -> int:
    """The number that a name stands for."""
    if not isinstance(value, str) or value not in allowed:
        known = ", ".join(repr(key) for key in allowed)
        raise InputError(f"`{name}` must be one of {known}, got {value!r}")
    return allowed[value]


def number(
    name: str, value: Any, wanted: str, accept: Callable[[Any], bool], *, integer: bool = False, hint: str = ""
) -> Any:
    """A finite scalar that ``accept`` takes; ``wanted`` says in words what that is."""
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    # a Python integer may be too large for NumPy to ask whether it is finite
    good = good and (abs(value) < 1e300 if isinstance(value, int) else bool(np.isfinite(value))) and bool(accept(value))
    if not good:
        advice = f"; {hint}" if hint else ""
        raise InputError(f"`{name}` must be {wanted}, got {value!r}{advice}")
    return int(value) if integer else float(value)


def output(name: str, out: Any, dtype: Any, *shape: int) -> Any:
    """A caller's output array, exactly as native code needs it; or a fresh one where ``out`` is None."""
    if out is None:
        return np.empty(shape, dtype)
    wanted = np.dtype(dtype)
    good = isinstance(out, np.ndarray) and out.dtype == wanted and out.shape == shape
    if not good or not out.flags.c_contiguous or not out.flags.writeable:
        got = f"{out.dtype} {_shape(out.shape)}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"`{name}` must be a writeable C-contiguous array of {wanted} {_shape(shape)}, got {got}")
    return out
