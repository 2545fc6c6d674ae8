"""A moving average of a model's weights."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Average(nn.Module):
    """Holds ``model``, the average of another one: shares of ``keep`` stay at each step, less in the first ones.

    The short memory at first keeps the random start from staying in the average for thousands of steps.
    """

    n_updates: Tensor

    def __init__(self, model: nn.Module, keep: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.keep = keep
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; whole numbers (counters) are copied."""
        n = int(self.n_updates)
        keep = min(self.keep, (1 + n) / (10 + n)) if self.keep else 0.0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        real = [(a, c) for a, c in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in real], [c for _, c in real], 1 - keep)
        for averaged, current in pairs:
            if not averaged.is_floating_point():
                averaged.copy_(current)
        self.n_updates += 1

    def train(self, mode: bool = True) -> "Average":  # noqa: ARG002  an average is never trained
        """Stays in evaluation mode."""
        return super().train(False)
