"""Shares of one piece of work among processes that see the same folder: `--shard 3/8`.

Who begins the work, and who does what all need (a run ranks its latents once), holds the lock ``common``, for which
others wait. Then each computes its share, under a lock of that share, while all hold the folder's lock together.
The process without a share holds the folder's lock alone, so it and shares never do the same work at once.
That, and a share that is at work already, are errors and no reason to wait: a job that waits for what another job does
holds a machine for nothing, and then finds nothing left to do.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from druse._folders import is_taken, lock_files, locked
from druse.errors import InputError

_MOST = 100_000


@dataclasses.dataclass(frozen=True)
class Share:
    """What one task of several does: every ``n_tasks``-th part of the work. Tasks are counted from 1."""

    task: int
    n_tasks: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Of ``3/8``.

        Raises:
            InputError: it is no such thing.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip(), re.ASCII)
        share = cls(int(match[1]), int(match[2])) if match else None
        if share is None or not 1 <= share.task <= share.n_tasks <= _MOST:
            raise InputError(f"--shard must be i/n with i from 1 to n, such as 3/8; got {text!r}")
        return share

    def __str__(self) -> str:
        return f"{self.task}/{self.n_tasks}"

    def has(self, k: int) -> bool:
        """Whether part ``k`` of the work, counted from 0, belongs to it."""
        return k % self.n_tasks == self.task - 1

    def overlaps(self, other: "Share") -> bool:
        """Whether both have a part in common, if there are enough."""
        return (self.task - other.task) % math.gcd(self.n_tasks, other.n_tasks) == 0


@contextlib.contextmanager
def common(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """The right to do what all shares need; waits for it.

    Args:
        folder: of the work.
        waiting: called while another process has the right.
    """
    with locked(folder, "common", waiting=waiting or _silent):
        yield


@contextlib.contextmanager
def working(folder: Path, share: Share | None) -> Iterator[None]:
    """The right to compute a share, or all that is missing where there is none.

    Raises:
        InputError: another process computes the same, or a part of it.
    """
    if share is None:
        with locked(folder):
            for name, path in lock_files(folder).items():
                if _share_of(name) is not None:  # nobody has it, or asks for it before the folder's own
                    path.unlink(missing_ok=True)
            yield
        return
    with locked(folder, shared=True), locked(folder, _name(share), what=f"share {share}"):
        for name in lock_files(folder):
            other = _share_of(name)
            if other is not None and other != share and other.overlaps(share) and is_taken(folder, name):
                raise InputError(
                    f"another process computes share {other} of {folder}, which has parts of {share}; "
                    "divide the work by one number"
                )
        yield


def _name(share: Share) -> str:
    return f"{share.task}-of-{share.n_tasks}"


def _share_of(name: str) -> Share | None:
    match = re.fullmatch(r"(\d+)-of-(\d+)", name)
    return Share(int(match[1]), int(match[2])) if match else None


def _silent() -> None:
    """Nobody wants to know."""
