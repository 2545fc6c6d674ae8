"""The devices of a model: bins of one queue, each taken by whichever device is free.

A thread waits for each device. That is enough for several: what it does is queue work and wait, in calls that release
the interpreter's lock (the native library's through ctypes, ONNX Runtime's, and those of cuda-bindings), and eight
steps are one call. How crystals are cut into bins does not depend on how many devices there are, and draws are named,
so the crystals do not either.

A device that fails loses the bin it was at, which another one begins anew, and is given nothing more: an error of CUDA
stays until its process ends. Its buckets stay too, for there is nothing left that could be asked to free them.
"""

import collections
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from druse._resident import Resident
from druse._rooms import bins, most_atoms
from druse.backends import OutOfMemoryError
from druse.bundle import ConCDVAEManifest
from druse.errors import DeviceError

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Devices:
    """The score network on every device of a model. Threads may share it."""

    def __init__(self, residents: Sequence[Resident], manifest: ConCDVAEManifest, memory: int) -> None:
        """All of them free.

        Args:
            residents: one for each device.
            manifest: of the model.
            memory: bytes that are free on each, before there are buckets, so that bins are the same at any time.
        """
        self.residents = tuple(residents)
        self._manifest, self._memory = manifest, memory
        self._free, self._failed = collections.deque(self.residents), list[str]()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self.residents)

    def bins(self, n_atoms: np.ndarray) -> list[range]:
        """Crystals in order, by their atom counts, in bins for a bucket."""
        return bins(n_atoms, self._manifest, self._memory)

    def together(self, ways: int = 1) -> int:
        """Crystals of a middling size that fill two bins for each of so many ways down the levels."""
        return math.ceil(2 * ways * most_atoms(self._manifest, self._memory) / (self._manifest.max_atoms / 2))

    def on_any(self, work: Callable[[Resident], Answer]) -> Answer:
        """What ``work`` gives on the first device that is free and does not fail.

        Raises:
            DeviceError: none is left.
            OutOfMemoryError: the work is too large for the device that had it.
        """
        while True:
            resident = self._take()
            try:
                answer = work(resident)
            except OutOfMemoryError:
                self._give_back(resident)
                raise
            except DeviceError as error:
                self._lose(resident, error)
            except BaseException:
                self._give_back(resident)
                raise
            else:
                self._give_back(resident)
                return answer

    def _take(self) -> Resident:
        with self._changed:
            self._changed.wait_for(lambda: self._free or len(self._failed) == len(self))
            if self._free:
                return self._free.popleft()
        raise DeviceError(
            f"no device is left to sample on: {'; '.join(self._failed)}. What is stored stays: see what `druse doctor` "
            "says, then go on with `druse resume`, on other devices by --devices"
        )

    def _give_back(self, resident: Resident) -> None:
        with self._changed:
            self._free.append(resident)
            self._changed.notify()

    def _lose(self, resident: Resident, error: DeviceError) -> None:
        with self._changed:
            self._failed.append(f"{resident.device.name}: {error}")
            left = len(self) - len(self._failed)
            self._changed.notify_all()
        if left:
            _log.warning("%s failed; its crystals go to the %d left: %s", resident.device.name, left, error)
