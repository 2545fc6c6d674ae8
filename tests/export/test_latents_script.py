"""The script of figure 5."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="t-SNE is scikit-learn's")
pa = pytest.importorskip("pyarrow", reason="latents are kept as Parquet")

SCRIPT = Path(__file__).parents[2] / "scripts" / "latents_tsne.py"


def latents(path: Path, seed: int) -> Path:
    from pyarrow import parquet

    rng = np.random.default_rng(seed)
    energy = rng.normal(size=60)
    mu = (rng.normal(size=(60, 8)) + energy[:, None]).astype(np.float32)
    columns = {"id": pa.array(map(str, range(60))), "energy": pa.array(energy)}
    columns["mu"] = pa.FixedSizeListArray.from_arrays(pa.array(mu.ravel()), 8)
    parquet.write_table(pa.table(columns), path)
    return path


def test_two_files_give_two_panels(tmp_path: Path) -> None:
    files = [latents(tmp_path / f"{name}.parquet", seed) for seed, name in enumerate(("with", "without"))]
    out = tmp_path / "figure.png"
    done = subprocess.run(
        [sys.executable, SCRIPT, *files, "--property", "energy", "--out", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    wrong = subprocess.run([sys.executable, SCRIPT, files[0], "--property", "gap"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "has no column gap; it has id, energy, mu" in wrong.stderr
