"""A failure that concerns some rows only: their records get an error, the others go on."""

from __future__ import annotations

from collections.abc import Sequence


class RowFailure(Exception):
    """One network could not go on with some rows.

    Args:
        name: the network or scorer.
        what: what is wrong, in words that follow the name.
        hint: what to do about it.
        rows: the rows concerned.
    """

    def __init__(self, name: str, what: str, hint: str, rows: Sequence[int]) -> None:
        super().__init__(f"{name}: {what} → {hint}")
        self.name = name
        self.rows = list(rows)
