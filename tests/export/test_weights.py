"""Weights in half precision: a file gives the model back, and a broken file an error."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="weights are PyTorch's")
pytest.importorskip("safetensors", reason="weights are kept as safetensors")

from druse import InputError, radius_graph  # noqa: E402
from druse.conditions import ScalarProperty  # noqa: E402
from druse_export.models.cgcnn import CGCNN, CGCNNConfig, neighbor_table  # noqa: E402
from druse_export.models.con_cdvae import ConCDVAEConfig  # noqa: E402
from druse_export.models.prior import PriorConfig  # noqa: E402
from druse_export.models.weights import read_cgcnn_weights, read_weights, save_weights  # noqa: E402


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 60_000}, r"embedding\.weight|hidden\.weight must have the shape \(60000, 64\), got \(128, 64\)"),
        ({"atom": 10**9}, "`atom` must be 1 to 65,536, got 1000000000"),
        ({"n_convolutions": 10**9}, "`n_convolutions` must be 1 to 256"),
        ({"n_convolutions": 4}, r"convolutions\.3\.linear\.weight must have the shape .*, got none"),
        ({"spacing": 0.0}, "must be of a grid of distances"),
        ({"cutoff": 1e300}, "must be of a grid of distances"),
    ],
)
def test_a_file_that_says_other_sizes_than_it_has(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """Nothing is made of them: not gigabytes, and no million layers."""
    from safetensors.torch import save_file

    model = CGCNN(CGCNNConfig())
    config = {**msgspec.to_builtins(model.config), **changes}
    facts = {"config": msgspec.json.encode(config).decode()}
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata=facts)
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "m.safetensors")


ENERGY = ScalarProperty("energy", 0.0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (ConCDVAEConfig, {"conditions": (), "predicted": ()}, "`conditions` must name one property or more"),
        (ConCDVAEConfig, {"latent": 128}, "`latent` of model and decoder must be the same"),
        (ConCDVAEConfig, {"n_levels": 0}, "`n_levels` must be 1 to"),
        (ConCDVAEConfig, {"sigma_last": 0.0}, "noise levels must be above 0"),
        (PriorConfig, {"time": 2}, "`time` must be an even number from 4 up, got 2"),
        (PriorConfig, {"beta_last": 1.0}, "must be between 0 and 1"),
    ],
)
def test_sizes_of_which_no_network_is_made(kind: type, changes: dict[str, object], message: str) -> None:
    given = {"conditions": (ENERGY,), **({"predicted": (ENERGY,)} if kind is ConCDVAEConfig else {}), **changes}
    with pytest.raises(InputError, match=message):
        kind(**given)
