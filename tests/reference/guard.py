"""Arrays inside a larger one, to see whether anything is written around them."""

import numpy as np

_BEFORE, _AFTER, _BYTE = 7, 97, 0xA5  # an odd number before, so that nothing is aligned by luck


class Guard:
    """A contiguous array with a filled region on either side; `check` says whether those are untouched."""

    def __init__(self, dtype: type, *shape: int) -> None:
        size, item = int(np.prod(shape)), np.dtype(dtype).itemsize
        self._whole = np.full((_BEFORE + size + _AFTER) * item, _BYTE, np.uint8).view(dtype)
        self._inside = slice(_BEFORE, _BEFORE + size)
        self.array: np.ndarray = self._whole[self._inside].reshape(shape)
        assert np.shares_memory(self.array, self._whole) or size == 0

    def check(self) -> None:
        """Fails where the surroundings have changed."""
        around = np.delete(self._whole, self._inside)
        assert np.all(around.view(np.uint8) == _BYTE), "written outside of the array"

    @property
    def untouched(self) -> bool:
        """Whether the array itself has never been written either."""
        return bool(np.all(self.array.reshape(-1).view(np.uint8) == _BYTE))
