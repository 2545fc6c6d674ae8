"""Screening: how long each rule takes for one crystal, and what memory it all takes.

    python benchmarks/screening.py FILE... [--rules rules.toml] [--repeat 8] [--jobs 2]

The files are screened ``--repeat`` times over, as copies, so that any number of crystals can be had. Prints the funnel,
milliseconds a crystal for each rule, the whole, and the largest resident memory of this process and of its workers.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

from druse.rules import default_rules, read_rules
from druse.screening import Screening

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("files", nargs="+", type=Path)
parser.add_argument("--rules", type=Path)
parser.add_argument("--repeat", type=int, default=1)
parser.add_argument("--jobs", type=int, default=0)
parser.add_argument("--json", action="store_true")


def main() -> None:
    options = parser.parse_args()
    rules = read_rules(options.rules) if options.rules else default_rules()
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for k in range(options.repeat):
            for path in options.files:
                sources.append(Path(folder) / f"{k:03d}-{path.name}")
                shutil.copyfile(path, sources[-1])
        clock = time.perf_counter()
        screening = Screening.begin(Path(folder) / "screening", sources, rules)
        begun = time.perf_counter() - clock
        funnel = screening.finish(n_jobs=options.jobs)
        whole = time.perf_counter() - clock
        seconds = screening.seconds
    own, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    rows = [
        {
            "rule": step.name,
            "entered": step.entered,
            "passed": step.passed,
            "seconds": seconds[step.name],
            "ms_each": 1e3 * seconds[step.name] / max(step.entered, 1),
        }
        for step in funnel.rules
    ]
    result = {
        "entries": funnel.entries,
        "survivors": funnel.survivors,
        "seconds": whole,
        "seconds_to_begin": begun,
        "property_models_seconds": seconds["property models"],
        "mib_of_this_process": own,
        "mib_of_the_largest_worker": workers,
        "rules": rows,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for row in rows:
        print("{rule:<28} {entered:>9,} -> {passed:>9,} {seconds:>9.1f} s {ms_each:>9.3f} ms each".format(**row))
    print(f"property models {seconds['property models']:.1f} s in all processes together")
    print(f"{funnel.entries:,} entries in {whole:.1f} s, {begun:.1f} of them to begin; {funnel.survivors:,} are left")
    print(f"memory: {own:,.0f} MiB here, {workers:,.0f} MiB the largest worker")


if __name__ == "__main__":
    main()
