"""Weights in half precision: a file gives the model back, and a broken file an error."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="weights are PyTorch's")
pytest.importorskip("safetensors", reason="weights are kept as safetensors")

from druse import InputError, radius_graph  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig, neighbor_table  # noqa: E402
from druse_export.models.weights import read_cgcnn_weights, save_weights  # noqa: E402


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_a_file_gives_the_model_back(tmp_path: Path, task: str) -> None:
    torch.manual_seed(0)
    model = CGCNN(CGCNNConfig(task=task, n_out=1 if task == "regression" else 2)).eval()
    save_weights(model, tmp_path / "m.safetensors", facts={"property": "x", "unit": "eV"})
    read, facts = read_cgcnn_weights(tmp_path / "m.safetensors")
    assert facts == {"property": "x", "unit": "eV"}
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]
    frac, cell = np.array([[0.0] * 3, [0.5] * 3]), np.eye(3)[None] * 4.1
    graph = radius_graph(frac, cell, [0, 2], cutoff=8.0, max_neighbors=12, shell_tolerance=None)
    table = neighbor_table(graph, np.array([55, 17]), model.config)
    with torch.no_grad():
        expected, got = model.predict(table), read.predict(table)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), atol=2e-3)


def test_a_broken_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_cgcnn_weights(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(InputError, match="does not hold a CGCNN"):
        read_cgcnn_weights(tmp_path / "broken.safetensors")
