"""Shapes of a network's inputs and outputs in a bucket of fixed lengths."""

from druse.bundle import Network


def bucket_shapes(network: Network, **lengths: int) -> dict[str, tuple[int, ...]]:
    """Every input and output with its named lengths replaced."""
    tensors = (*network.inputs, *network.outputs)
    return {t.name: tuple(lengths[n] if isinstance(n, str) else n for n in t.shape) for t in tensors}
