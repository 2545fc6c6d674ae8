"""What it costs to share a run: one process, two tasks with a share each, and a Ray cluster, all on two cores.

Run ``python benchmarks/campaign.py``. Each way makes the same run of the default bundle, by the command line, as a user
would; ways take turns. The folders are compared byte by byte.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import Clock, cpu_name


def begun(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "druse", *map(str, arguments), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(*processes: subprocess.Popen[str]) -> list[dict[str, dict[str, float]]]:
    found = []
    for process in processes:
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args} failed")
        found.append(json.loads(out))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "run.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--schedule", default="ancestral")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asked = ["--target", "formation_energy_per_atom=-2", "--count", options.count, "--batch", options.batch]
    asked += ["--schedule", options.schedule, "--seed", 1, "--out"]
    spent: dict[str, list[float]] = {}
    clock = Clock()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            one, two, ray = (Path(folder) / name for name in ("one", "two", "ray"))

            start = time.perf_counter()
            ended(begun("generate", *asked, one, "--threads", 2))
            spent.setdefault("one process, 2 threads", []).append(time.perf_counter() - start)

            start = time.perf_counter()
            tasks = [begun("generate", *asked, two, "--threads", 1, "--shard", f"{task}/2") for task in (1, 2)]
            parts = ended(*tasks)
            spent.setdefault("two tasks, 1 thread each", []).append(time.perf_counter() - start)
            ranking = max(part["seconds"]["latents"] for part in parts)
            spent.setdefault("  of it ranking, on 1 thread, and waiting for it", []).append(ranking)
            start = time.perf_counter()
            ended(begun("resume", two, "--threads", 2))
            spent.setdefault("and the call that writes the files", []).append(time.perf_counter() - start)

            # the cost of Ray: of a run that is ranked, so that the same shards are left
            shutil.copytree(one, ray)
            shutil.rmtree(ray / "shards")
            for path in ray.glob("crystals.*"):
                path.unlink()
            start = time.perf_counter()
            (made,) = ended(begun("resume", ray, "--ray", "local", "--threads", 2))
            spent.setdefault("Ray, latents at hand: all of it", []).append(time.perf_counter() - start)
            spent.setdefault("  of it shards", []).append(made["seconds"]["crystals"])
            again = Path(folder) / "again"
            shutil.copytree(ray, again)
            shutil.rmtree(again / "shards")
            (made,) = ended(begun("resume", again, "--threads", 2))
            spent.setdefault("  shards by one process, 2 threads", []).append(made["seconds"]["crystals"])
            if not contents(one) == contents(two) == contents(ray) == contents(again):
                raise SystemExit("the folders differ")
    others = clock.read()[1]
    print(f"{cpu_name()}; {options.count} crystals, {options.batch} in a shard; others took {others:.0%} of the cores")
    for name, seconds in spent.items():
        print(f"{name:52}{np.median(seconds):8.1f} s   ({min(seconds):.1f} to {max(seconds):.1f})")


if __name__ == "__main__":
    main()
