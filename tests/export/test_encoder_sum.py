"""The encoder's sum in pieces, against the same written out in float64."""

import pytest

torch = pytest.importorskip("torch", reason="the networks are PyTorch's")

from druse_export.models.dimenet import BasisSum  # noqa: E402


def written_out(weights: "torch.Tensor", x: "torch.Tensor", basis: "torch.Tensor") -> "torch.Tensor":
    n, pb, q = weights.shape
    paths = weights.reshape(n, pb // len(basis), len(basis), q)
    return torch.einsum("npbq,nqc,bc->npc", paths, x, basis).flatten(0, 1)


@pytest.mark.parametrize("n_atoms", [0, 1, 7, 60])
def test_sum_and_gradients(n_atoms: int) -> None:
    rng = torch.Generator().manual_seed(n_atoms)
    shapes = (n_atoms, 30 * 8, 30), (n_atoms, 30, 64), (8, 64)
    ours = [torch.randn(shape, generator=rng, requires_grad=True) for shape in shapes]
    twins = [value.detach().double().requires_grad_() for value in ours]
    out, twin = BasisSum.apply(*ours), written_out(*twins)
    torch.testing.assert_close(out.double(), twin, atol=2e-4, rtol=1e-5)
    pull = torch.randn(out.shape, generator=rng)
    out.backward(pull)
    twin.backward(pull.double())
    for value, expected in zip(ours, twins, strict=True):
        torch.testing.assert_close(value.grad.double(), expected.grad, atol=2e-3, rtol=1e-4)


def test_gradients_by_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = (3, 4 * 2, 5), (3, 5, 6), (2, 6)
    values = [torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(BasisSum.apply, values)


def test_under_autocast_it_is_of_low_precision() -> None:
    values = [torch.randn(shape, requires_grad=True) for shape in ((3, 8, 5), (3, 5, 6), (2, 6))]
    with torch.autocast("cpu", torch.bfloat16):
        out = BasisSum.apply(*values)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in values)
    torch.testing.assert_close(out.float(), BasisSum.apply(*values), atol=0.2, rtol=0.05)
