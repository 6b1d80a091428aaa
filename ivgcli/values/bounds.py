"""Lower and upper bounds of the probability that a text goes on with a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ivgcli.values.lattice import Lattice, Questions
from ivgcli.values.prefixes import PrefixReader


class Asked(NamedTuple):
    """What one lattice wants to know; the same for every model that it stands for."""

    steps: Questions
    """The token into each node but the first, at its parent."""
    covers: Questions
    heads: Questions
    tokens: np.ndarray
    """(H,) the heads' ids."""
    ends: np.ndarray
    """(E,) nodes after which EOS ends the text."""


def ask(
    lattice: Lattice,
    candidates: Sequence[tuple[int, bytes]],
    text: int,
    endings: Sequence[int] = (),
    canonical: bool = False,
) -> Asked:
    """Return a lattice's questions.

    Args:
        lattice: of one row.
        candidates: (number, bytes) pairs.
        text: the number that stands for the text itself.
        endings: the candidates that end the text, where it may end in any tokens; without them, only the trunk ends.
        canonical: whether only canonical tokenisations count.
    """
    places = lattice.vocabulary.places
    steps = Questions.of(
        (0, node.parent, places.get(node.token, -1), places.get(node.token, -1) + 1)
        for node in lattice.nodes[1:]
    )
    if canonical:
        heads, tokens = lattice.led()
    else:
        heads, tokens = lattice.heads([*candidates, (text, b"")], endings)
    covers = lattice.covers(candidates).joined(lattice.past(text))
    ends = lattice.ends() if endings else np.array([lattice.end])
    return Asked(steps, covers, heads, tokens, ends)


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
    reader: PrefixReader,
    lattices: Sequence[Lattice],
    asked: Sequence[Asked],
    slots: Sequence[Sequence[int]],
    endings: Sequence[Sequence[int]],
    columns: int,
) -> Bounds:
    """Return the bounds of all candidates of R rows under one model, from the distributions that it keeps.

    Args:
        reader: of the model.
        lattices: one for each row.
        asked: their questions.
        slots: for each row, the number of every node's distribution.
        endings: for each row, the candidates that end the text: EOS of the base.
        columns: C + 1.
    """
    tables = [np.asarray(each, dtype=np.int64) for each in slots]
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for lattice, questions, table in zip(lattices, asked, tables, strict=True):
        # The unknown token and special ones have no place among the strings.
        lost = questions.steps.begin < 0
        begin = questions.steps.begin.copy()
        begin[lost] = [reader.places[lattice.nodes[1 + at].token] for at in np.flatnonzero(lost)]
        parts.append((table[questions.steps.node], begin, begin + 1))
        for kind in (questions.covers, questions.heads):
            parts.append((table[kind.node], kind.begin, kind.end))
        for token in reader.vocabulary.eos:
            place = np.full(len(questions.ends), reader.places[token])
            parts.append((table[questions.ends], place, place + 1))
    found = reader.probabilities(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return _assembled(reader, lattices, asked, endings, columns, found)


def _assembled(
    reader: PrefixReader,
    lattices: Sequence[Lattice],
    asked: Sequence[Asked],
    endings: Sequence[Sequence[int]],
    columns: int,
    found: np.ndarray,
) -> Bounds:
    """Weigh what was found by the probability of the path to each node."""
    lower = np.zeros((len(lattices), columns))
    kept: list[tuple[np.ndarray, ...]] = []
    at = 0
    for row, (lattice, questions) in enumerate(zip(lattices, asked, strict=True)):
        weights = np.ones(len(lattice.nodes))
        for number, node in enumerate(lattice.nodes[1:], 1):
            weights[number] = weights[node.parent] * found[at + number - 1]
        at += len(questions.steps.node)
        covers, heads = questions.covers, questions.heads
        masses = found[at : at + len(covers.node)] * weights[covers.node]
        lower[row] += np.bincount(covers.candidate, masses, columns)
        at += len(covers.node)
        masses = found[at : at + len(heads.node)] * weights[heads.node]
        at += len(heads.node)
        kept.append((row * columns + heads.candidate, heads.node, questions.tokens, masses))
        count = len(questions.ends)
        for _ in reader.vocabulary.eos:
            chances = found[at : at + count]
            lower[row, list(endings[row])] += float(chances @ weights[questions.ends])
            at += count
    return Bounds(lower, *(np.concatenate(column) for column in zip(*kept, strict=True)))
