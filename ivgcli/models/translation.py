"""The ids under which a network knows another's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Translation:
    """The ids under which a network knows the base's tokens, where they stand elsewhere.

    Args:
        ids: the network's id of every token that the base can emit.
        device: where the network's outputs are.
    """

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        self.ids = list(ids)
        self.columns = torch.tensor(self.ids, device=device)
        """(V,) where to find the base's tokens among the outputs of the network's head."""
        self.places = {theirs: ours for ours, theirs in enumerate(self.ids)}
        """The base's id of each."""
