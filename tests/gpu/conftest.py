"""Tests marked ``gpu`` run on a CUDA device, or say why they do not."""

import pytest
from places import missing


@pytest.fixture(autouse=True)
def device_here(request: pytest.FixtureRequest) -> None:
    reason = missing()
    if reason is not None and request.node.get_closest_marker("gpu") is not None:
        pytest.skip(reason)
