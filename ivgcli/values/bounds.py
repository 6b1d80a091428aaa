"""Lower and upper bounds of the probability that a text goes on with a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ivgcli.values.additions import Ints
from ivgcli.values.prefixes import PrefixReader
from ivgcli.values.questions import Asked


@dataclass
class Bounds:
    """What one model's lattices say of the candidates of R rows; the last of C + 1 columns is the text itself."""

    lower: np.ndarray
    """(R, C + 1) probability of all paths that are known to cover a candidate."""
    places: np.ndarray
    """(H,) r·(C + 1) + c of each path that may still come to cover candidate c of row r."""
    nodes: np.ndarray
    """(H,) the node where each of them stops."""
    tokens: np.ndarray
    """(H,) the token after it that has no node."""
    masses: np.ndarray
    """(H,) its probability."""

    def gap(self) -> np.ndarray:
        """Return upper − lower (R, C + 1)."""
        size = self.lower.size
        return np.bincount(self.places, self.masses, size).reshape(self.lower.shape)

    def patch(self, rows: Sequence[int], other: Bounds) -> None:
        """Take over what `other` says of these rows."""
        columns = self.lower.shape[1]
        self.lower[list(rows)] = other.lower
        stays = ~np.isin(self.places // columns, rows)
        where = np.asarray(rows)[other.places // columns] * columns + other.places % columns
        self.places = np.concatenate([self.places[stays], where])
        for name in ("nodes", "tokens", "masses"):
            both = [getattr(self, name)[stays], getattr(other, name)]
            setattr(self, name, np.concatenate(both))


def bound(
    reader: PrefixReader, asked: Asked, slots: Sequence[Sequence[int]], ending: NDArray[np.bool_]
) -> Bounds:
    """Return the bounds of all candidates of R rows under one model, from the distributions that it keeps.

    Args:
        reader: of the model.
        asked: the questions of the rows' lattices.
        slots: for each row, the number of every node's distribution.
        ending: (R, C) which candidates end the text: EOS of the base.
    """
    table = np.fromiter(chain.from_iterable(slots), dtype=np.int64)
    parents = np.array(asked.parents, dtype=np.int64)
    steps = np.flatnonzero(parents >= 0)
    # Of a trunk's token: the unknown token and special ones stand last in byte order.
    step = reader.places[np.array(asked.tokens, dtype=np.int64)[steps]]
    covers, heads = asked.covers, asked.heads
    rows, ends = asked.ends.T
    eos = [np.full(len(ends), reader.places[token]) for token in reader.vocabulary.eos]
    nodes = [parents[steps], covers.node, heads.node, *(ends for _ in eos)]
    begins = [step, covers.begin, heads.begin, *eos]
    ended = [step + 1, covers.end, heads.end, *(place + 1 for place in eos)]
    found = reader.probabilities(
        table[np.concatenate(nodes)], np.concatenate(begins), np.concatenate(ended)
    )
    parts = np.split(found, np.cumsum([len(each) for each in nodes])[:-1])
    weights = _weights(asked.parents, steps, parts[0])
    size, shape = ending.size + len(ending), (len(ending), ending.shape[1] + 1)
    lower = np.bincount(covers.cell, parts[1] * weights[covers.node], size).reshape(shape)
    over = sum(parts[3:], np.zeros(len(ends))) * weights[ends]
    lower[:, :-1] += ending * np.bincount(rows, over, len(ending))[:, None]
    masses = parts[2] * weights[heads.node]
    owners = heads.cell // shape[1]
    return Bounds(lower, heads.cell, heads.node - asked.offsets[owners], asked.ids, masses)


def _weights(
    parents: Sequence[int], steps: Ints, found: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the probability (N,) of the path to each node; parents come before their children."""
    weights = [1.0] * len(parents)
    for node, chance in zip(steps.tolist(), found.tolist(), strict=True):
        weights[node] = weights[parents[node]] * chance
    return np.array(weights)
