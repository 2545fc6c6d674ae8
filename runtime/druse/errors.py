"""What can go wrong, as types.

::

    DruseError
    ├── InputError (ValueError)        an argument or a file is not what it should be
    ├── MissingDependencyError (ImportError)
    │                                  an optional package is not installed; names the extra that brings it
    ├── NativeLibraryError (OSError)   the native library is absent or from another version
    ├── DeviceError (RuntimeError)     a device or backend that was asked for cannot run
    └── DownloadError (OSError)        a file could not be fetched, or what came is not the file that was expected

Every message says what was wrong, what arrived, and what to do about it.
"""

__all__ = [
    "DeviceError",
    "DownloadError",
    "DruseError",
    "InputError",
    "MissingDependencyError",
    "NativeLibraryError",
]


class DruseError(Exception):
    """Base of every error that Druse raises on purpose."""


class InputError(DruseError, ValueError):
    """An argument or a file is not what it should be."""


class MissingDependencyError(DruseError, ImportError):
    """An optional package is not installed."""


class NativeLibraryError(DruseError, OSError):
    """The native library is absent, broken, or from another version of Druse."""


class DeviceError(DruseError, RuntimeError):
    """A device or backend that was asked for by name cannot run."""


class DownloadError(DruseError, OSError):
    """A file could not be fetched, or what came is not the file that was expected."""
