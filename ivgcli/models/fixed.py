"""Passes whose every row comes out the same to the bit, whatever stands beside it.

Which kernel multiplies matrices, and in which order it sums, depends on their height. So layers work here on blocks of
one fixed height, padded where they are not full: a row's sums are then the same wherever it stands and whoever stands
beside it. Attention is worked out for each row by itself.

Reference: He (2025), Defeating nondeterminism in LLM inference, for where batches leave their traces; LLM-42 (2026,
arXiv:2601.17768) for fixed shapes in place of other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ivgcli.errors import ModelError

HEIGHT = {"cpu": 32, "cuda": 128}
"""Rows of a block on each kind of device: a GPU multiplies 128 rows in the time in which it reads the weights."""


class Blocked:
    """A function of rows, on blocks of `height` rows.

    Args:
        inner: takes (H', …) or (1, H', …), whose H' rows it treats alike.
        height: of a block.
    """

    def __init__(self, inner: Callable[[Tensor], Tensor], height: int) -> None:
        self.inner = inner
        self.height = height

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return what `inner` finds, row by row."""
        axis = 0 if inputs.dim() == 2 else 1
        outputs = []
        for part in inputs.split(self.height, axis):
            count = part.shape[axis]
            behind = [0, 0] * (part.dim() - 1 - axis) + [0, self.height - count]
            outputs.append(self.inner(F.pad(part, behind)).narrow(axis, 0, count))
        return torch.cat(outputs, axis) if len(outputs) != 1 else outputs[0]


def fix_heights(name: str, model: nn.Module, height: int) -> None:
    """Let a model's products and norms work on blocks of one height; those that do so already are left alone.

    Args:
        name: of the model, for the sentence.
        model: a decoder; adapters over it included.
        height: of a block.

    Raises:
        ModelError: it is a mixture of experts, whose products are as high as tokens happen to come to each expert.
    """
    config: Any = model.config
    if any(getattr(config, each, None) for each in ("num_local_experts", "num_experts")):
        what = "a mixture of experts: how many tokens meet an expert depends on the batch"
        raise ModelError(name, what, "leave out --deterministic")
    for layer in model.modules():
        if _treats_rows(layer) and not isinstance(layer.__dict__.get("forward"), Blocked):
            layer.forward = Blocked(layer.forward, height)


def _treats_rows(layer: nn.Module) -> bool:
    """Return whether a layer sums over each row: a product, or a norm."""
    return isinstance(layer, (nn.Linear, Conv1D)) or "Norm" in type(layer).__name__
