"""Weights laid out for the processor: on a CPU the same matrix products in a third to two thirds of the time.

Decoding multiplies a few rows by every weight matrix. oneDNN does that 1.5 to 3.8 times as fast as the general routine
behind `nn.Linear` if the matrix lies in memory the way its kernel walks through it, but torch offers that layout only
to compiled graphs. The operators behind it are looked up and tried out here, and whatever is not as expected leaves the
model as it is; results differ by rounding only. A second copy of the weights is the price, so it is made only where
memory is plentiful.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ivgcli.models.memory import free_memory

SMALLEST = 1 << 14
"""Matrices with fewer entries are not worth a copy."""

SHARE = 0.25
"""Share of the free memory that the copies of one model may take."""

TOLERANCE = 1e-4
"""Largest difference to the plain product, relative to its spread, at which the packed one is believed."""


class PackedWeights:
    """The packed copies of one model's weight matrices, which can be put in use and out of use.

    Args:
        model: a model on a CPU in float32; any other keeps its own products.
    """

    def __init__(self, model: nn.Module) -> None:
        self.products: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        if not _available():
            return
        layers = [layer for layer in model.modules() if _packable(layer)]
        size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
        if not layers or size > SHARE * free_memory(torch.device("cpu")):
            return
        with torch.no_grad():
            products = [(layer, _product(layer)) for layer in layers]
            if all(_agrees(layer, product) for layer, product in products[:2]):
                self.products = products

    def attach(self) -> None:
        """Let the model's layers use their packed weights."""
        for layer, product in self.products:
            layer.forward = product

    def detach(self) -> None:
        """Let them use their plain weights again."""
        for layer, _ in self.products:
            layer.__dict__.pop("forward", None)


def _available() -> bool:
    """Return whether torch was built with oneDNN and has the operators."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def _packable(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, Conv1D):
        return False
    weight = layer.weight
    return (
        weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALLEST
    )


def _product(layer: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that does what the layer does, with packed weights."""
    # GPT-2's layers keep their matrices transposed.
    matrix = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t().contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix.detach(), None)
    bias = None if layer.bias is None else layer.bias.detach()

    def product(inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")

    return product


def _agrees(layer: Any, product: Callable[[Tensor], Tensor]) -> bool:
    """Return whether the packed product gives what the plain one does."""
    matrix = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    inputs = torch.linspace(-1, 1, 3 * matrix.shape[1]).view(1, 3, -1).sin()
    try:
        ours = product(inputs)
    except RuntimeError:
        return False
    theirs = F.linear(inputs, matrix, layer.bias)
    spread = theirs.std().clamp_min(1e-6)
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= TOLERANCE * spread)
