"""What an extra brings, asked for at the moment of need."""

import importlib

from druse.errors import MissingDependencyError


def require(*modules: str, purpose: str, extra: str = "export") -> None:
    """Import modules, or say which extra of Druse brings them.

    Args:
        modules: names to import.
        purpose: what needs them, as the sentence begins: "reading Parquet".
        extra: of Druse.

    Raises:
        MissingDependencyError: one is not there.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0].replace("_", "-")
            raise MissingDependencyError(f"{purpose} needs {package}; pip install 'druse[{extra}]'") from error
