"""Tests here run on a CUDA device, or say why they do not."""

import pytest
from places import missing


@pytest.fixture(autouse=True)
def device_here() -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
