"""Which networks go on which GPU, and what would fit where a plan does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """What the networks of a run take on one GPU, before there is a row."""

    base: int
    """Bytes of the base's weights, all of them together."""
    others: int
    """Bytes of the networks that are whole on every GPU."""
    heads: int
    """Key/value heads of the base."""
    quantised: int | None = None
    """Bytes of the base's weights in 4 bits; None: they are quantised already."""
    row: int = 0
    """Bytes of the base's keys and values in the rows of one search."""
    other_row: int = 0
    """Bytes of the others' in these rows."""

    def a_gpu(self, shards: int) -> int:
        """Return the bytes on each GPU, if so many hold the base between them."""
        return self.others + self.other_row - (-(self.base + self.row) // shards)

    def shards_that_fit(self, free: int) -> int | None:
        """Return the smallest number of GPUs, of `free` bytes each, among which the base fits; None: there is none."""
        counts = (count for count in range(1, self.heads + 1) if self.heads % count == 0)
        return next((count for count in counts if self.a_gpu(count) <= free), None)

    def what_would_fit(self, free: int) -> str:
        """Return what to do, as the end of a sentence, where the plan does not fit into `free` bytes a GPU."""
        ways = []
        shards = self.shards_that_fit(free)
        if shards is not None:
            ways.append(f"--shards {shards}")
        if self.quantised is not None:
            small = self.quantised + self.row + self.others + self.other_row
            if small <= free:
                ways.append("base.quantization: 4bit")
        return " or ".join(ways) or "smaller networks, or GPUs with more memory"
