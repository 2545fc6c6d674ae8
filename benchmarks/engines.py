"""How long TensorRT takes to build an engine of the score network for a bucket, and how large it is.

Run ``python benchmarks/engines.py``, anywhere: TensorRT-RTX builds without a device. With ``--library tensorrt`` it
needs one, and every build starts without a timing cache. Best of several builds, each with parsing.
"""

import argparse
import time

from measure import cpu_name

from druse._rooms import Room, Shape
from druse.backends._tensorrt import build, library, tensorrt
from druse.bundle import Bundle

BINS = (1, 100, 1_000, 5_000, 11_263)
"""Atoms, ten in a crystal."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=["tensorrt", "tensorrt_rtx"], default="tensorrt_rtx")
    parser.add_argument("--bundle", help="a bundle; without it, the one that comes with Druse")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle) if options.bundle else Bundle.embedded()
    manifest, module = bundle.con_cdvae, tensorrt(options.library)
    network = manifest.decoder
    print(f"{library(module)}, {cpu_name()}, {bundle.name}\n")
    print("| file | crystals | atoms | degree | half edges | built in s | engine, MB |\n|---|" + "---:|" * 6)
    for file in network.every_file:
        content = bundle.read(file)
        for n_atoms in BINS:
            shape = Shape.of(-(-n_atoms // 10), n_atoms, manifest, Room())
            tensors, times = (*network.inputs, *network.outputs), []
            shapes = {t.name: tuple(shape.lengths[n] if isinstance(n, str) else n for n in t.shape) for t in tensors}
            for _ in range(options.rounds):
                start = time.perf_counter()
                engine = build(module, content, network, shapes).engine
                times.append(time.perf_counter() - start)
            lengths = f"{shape.crystals:,} | {shape.atoms:,} | {shape.degree} | {shape.edges:,}"
            print(f"| {file} | {lengths} | {min(times):.1f} | {len(engine) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
