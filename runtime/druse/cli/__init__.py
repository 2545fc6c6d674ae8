"""The command line: a thin skin over the library. One file a command."""

from druse.cli._app import app, main

__all__ = ["app", "main"]
