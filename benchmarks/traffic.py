"""What ONNX Runtime's operators read and write in one evaluation of the score network: bytes, by operator.

Run ``python benchmarks/traffic.py --crystals 1024`` on any machine: the decoder with the lengths of such a bucket, as
ONNX Runtime fuses it (SiLU is one operator then), float32 or TF32. Each operator counts its inputs and outputs once,
weights and views left out; in float16 and bfloat16 it is half. Divided by a device's memory bandwidth it is what an
evaluation takes at least, as long as operators do not share what they hold.
"""

import argparse
import collections
import math
import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper, shape_inference

from druse._rooms import Room, Shape
from druse.bundle import Bundle

VIEWS = {"Reshape", "Squeeze", "Unsqueeze"}


def fused(content: bytes, lengths: dict[str, int], path: Path) -> onnx.ModelProto:
    """The network with these lengths, after ONNX Runtime's optimisations that are not a processor's own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that such a file is for this machine
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    for name, length in lengths.items():
        options.add_free_dimension_override_by_name(name, length)
    onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["GatherSliceToSplitFusion"]
    )
    return shape_inference.infer_shapes(onnx.load(path), data_prop=True)


def traffic(model: onnx.ModelProto) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Bytes, and how many operators, by kind."""
    graph = model.graph
    size = dict.fromkeys((tensor.name for tensor in graph.initializer), 0) | {"": 0}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        item = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
        size[value.name] = item * math.prod(dim.dim_value for dim in tensor.shape.dim)
    n_bytes: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for node in graph.node:
        if node.op_type not in VIEWS:
            count[node.op_type] += 1
            n_bytes[node.op_type] += sum(size[name] for name in (*node.input, *node.output))
    return n_bytes, count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="of the generator; the one that comes with Druse")
    parser.add_argument("--crystals", type=int, default=1024)
    parser.add_argument("--atoms", type=int, default=10, help="of a crystal")
    options = parser.parse_args()
    bundle = Bundle.embedded() if options.bundle is None else Bundle.open(options.bundle)
    manifest = bundle.con_cdvae
    shape = Shape.of(options.crystals, options.crystals * options.atoms, manifest, Room())
    with tempfile.TemporaryDirectory() as folder:
        network = fused(bundle.read(manifest.decoder.file), shape.lengths, Path(folder) / "fused.onnx")
    n_bytes, count = traffic(network)
    print(", ".join(f"{value:,} {name}" for name, value in shape.lengths.items()))
    for kind, total in n_bytes.most_common():
        if total > 1e6:
            print(f"{kind:>12} {count[kind]:4d} {total / 1e9:8.2f} GB")
    print(f"{'all':>12} {count.total():4d} {n_bytes.total() / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
