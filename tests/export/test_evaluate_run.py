"""A run directory is evaluated where it lies: its failed crystals count, by the numbers that the run gave them."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="bundles are made with PyTorch")
pytest.importorskip("matminer", reason="makes the fingerprints")
pytest.importorskip("smact", reason="knows the oxidation states")

from druse import Generator, Request, Run, SamplingSchedule
from druse.cli import main


@pytest.mark.usefixtures("as_users_call")
def test_a_run(
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = SamplingSchedule(method="ancestral", n_levels=4)
    run = Run.create(
        tmp_path / "run",
        generator,
        Request(targets={"band_gap": 2.0}, count=5, oversample=3, seed=11, schedule=quick, batch=3),
    )
    run.finish(generator)
    arguments = ["evaluate", str(run.path), "--reference", str(run.path / "crystals.extxyz"), "--no-cache", "--json"]
    monkeypatch.setattr(sys, "argv", ["druse", *arguments, "--jobs", "1"])
    with pytest.raises(SystemExit):
        main()
    found = json.loads(capsys.readouterr().out)
    assert found["n_crystals"] == 5
    failed = [str(n) for part in run.generated() for n in part.ids[~part.ok]]
    assert found["n_reference"] == 5 - len(failed)
    named = [one["id"] for one in found["invalid"]]
    assert named[len(named) - len(failed) :] == failed
    assert found["unique"]["count"] <= 5 - len(failed)
    assert found["precision"]["count"] == found["recall"]["count"]  # the reference being what was generated
