"""What the tests of generating share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from druse import Generator


@pytest.fixture(scope="session")
def bundle_path(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """Of a bundle that generates, with random weights."""
    import generator_bundle

    return made_once("generator_bundle", generator_bundle.make)


@pytest.fixture(scope="module")
def generator(bundle_path: Path) -> Generator:
    """That bundle on two threads."""
    return Generator(bundle_path, n_threads=2)
