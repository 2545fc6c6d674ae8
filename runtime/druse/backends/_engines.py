"""Built engines on disk: one file for each, which is used whole and as it was written, or not at all.

An engine holds code for a device, so a file is believed only where this user wrote it and nobody else may; its first
line says what it was built of and for, and the SHA-256 of the rest. A file that fails any of this is replaced.
"""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from druse._dependencies import require
from druse._files import whole_file

_log = logging.getLogger(__name__)

_LARGEST = 2**34


def default_folder() -> Path:
    """Where engines are kept unless told: in the platform's cache of this user.

    Raises:
        MissingDependencyError: platformdirs is not installed.
    """
    require("platformdirs", purpose="finding the cache folder", extra="tensorrt")
    import platformdirs

    return platformdirs.user_cache_path("druse") / "engines"


class EngineCache:
    """A folder of engines. It may be deleted at any time; what is missing is built again.

    Args:
        folder: made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the engine of a key lies, if it is there."""
        return self.folder / f"{hashlib.sha256(_text(key)).hexdigest()[:40]}.engine"

    def read(self, key: Mapping[str, str]) -> bytes | None:
        """The engine of a key, or None where there is none that can be believed.

        Args:
            key: everything that the engine depends on.
        """
        path = self.path(key)
        try:
            content = _own_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.info("%s is not used: %s", path, error.strerror or error)
            return None
        start = content.find(b"\n") + 1
        engine = content[start:]
        if not start or content[:start] != _header(key, engine):
            _log.info("%s is not used: it is damaged, or of another key", path)
            return None
        return engine

    def write(self, key: Mapping[str, str], engine: bytes) -> None:
        """Keep an engine. A folder that cannot be written to costs time at the next start, and no more."""
        path = self.path(key)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with whole_file(path, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(_header(key, engine))
                file.write(engine)
        except OSError as error:
            _log.warning("an engine cannot be kept in %s: %s", self.folder, error.strerror or error)


def _text(key: Mapping[str, str]) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()


def _header(key: Mapping[str, str], engine: bytes) -> bytes:
    return _text({**key, "sha256": hashlib.sha256(engine).hexdigest()}) + b"\n"


def _own_file(path: Path) -> bytes:
    """A plain file that belongs to this user and that nobody else may write.

    Raises:
        OSError: it is not there, or is something else.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:  # noqa: PTH123  a handle, not a path
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
            raise PermissionError(0, "it is no plain file of this user alone")
        if state.st_size > _LARGEST:
            raise OSError(0, "it is too large")
        return file.read()
