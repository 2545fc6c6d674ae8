"""Elements: symbols, and the features that CGCNN and the composition condition describe them by."""

import functools
from importlib import resources

import numpy as np

from druse._arrays import Float32

__all__ = ["N_FEATURES", "element_features"]

N_FEATURES = 92


@functools.cache
def element_features() -> Float32[np.ndarray, "elements features"]:
    """``[101, 92]`` features by atomic number, row 0 empty (read-only).

    Source: Xie and Grossman, Phys. Rev. Lett. 120, 145301 (2018).
    """
    text = resources.files("druse").joinpath("data", "element_features.txt").read_text("ascii")
    rows = [line for line in text.splitlines() if line and not line.startswith("#")]
    features = np.zeros((len(rows) + 1, N_FEATURES), np.float32)
    features[1:] = [[float(bit) for bit in row] for row in rows]
    features.flags.writeable = False
    return features
