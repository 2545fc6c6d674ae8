"""One network to ONNX, by `torch.export`, with the names and free lengths of its signature."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from druse._dependencies import require
from druse.bundle import Tensor as Spec
from druse_export.bundles.networks import Exported

OPSET = 20
_LENGTHS = {"crystals": 3, "atoms": 7, "edges": 11, "directed": 22, "degree": 5, "members": 4}


def example(spec: Spec) -> Tensor:
    """Values of a signature's tensor: in range as indices, of no two free lengths that are equal."""
    shape = [n if isinstance(n, int) else _LENGTHS[n] for n in spec.shape]
    return torch.ones(shape, dtype=torch.int32) if spec.dtype == "int32" else torch.rand(shape)


def to_onnx(network: Exported) -> bytes:
    """The network as an ONNX file, weights within, names and free lengths as in its signature.

    Raises:
        MissingDependencyError: onnxscript is not installed.
    """
    require("onnxscript", purpose="export to ONNX")
    examples = tuple(example(spec) for spec in network.inputs)
    free: list[Any] = [
        {axis: name for axis, name in enumerate(spec.shape) if isinstance(name, str)} for spec in network.inputs
    ]
    with _quiet():
        program = torch.onnx.export(
            network.eval(),
            examples,
            dynamo=True,
            input_names=[spec.name for spec in network.inputs],
            output_names=[spec.name for spec in network.outputs],
            dynamic_shapes=({"values": tuple(free)} if _takes_all(network) else tuple(free)),
            opset_version=OPSET,
            verbose=False,
        )
    model: Any = program.model_proto  # type: ignore[union-attr]
    del model.metadata_props[:]
    for node in model.graph.node:  # where in our sources it was traced: of no use, and paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _takes_all(network: Exported) -> bool:
    return network.forward.__code__.co_flags & 0x04 != 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of itself, of optional packages and of names of lengths; none of it helps the caller."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
