"""What has to be looked up in a model's distributions to bound the probabilities of all candidates of several rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ivgcli.values.additions import Ints, Ranges
from ivgcli.values.lattice import Lattice

Found = list[tuple[int, int, int, int]]


class Questions(NamedTuple):
    """Ranges of places in byte order, as parallel arrays."""

    cell: Ints
    """(Q,) r·(C + 1) + c: candidate c of row r; the last c of a row is the text itself."""
    node: Ints
    """(Q,) number of the node, counted through all rows."""
    begin: Ints
    """(Q,) first place of a range in byte order."""
    end: Ints
    """(Q,) the place behind its last; −1: all there is, tokens without text included."""

    @classmethod
    def of(cls, *tables: Found | Ints) -> Questions:
        """Return questions from their rows."""
        every = [np.asarray(table, dtype=np.int64).reshape(-1, 4) for table in tables]
        return cls(*np.ascontiguousarray(np.concatenate(every).T))


class Asked(NamedTuple):
    """What the lattices of R rows want to know; the same for every model that they stand for."""

    offsets: Ints
    """(R,) nodes of all rows before each."""
    parents: list[int]
    """Of every node, the one it comes from; −1 for each row's first one."""
    tokens: list[int]
    """The token into every node; −1 for each row's first one."""
    covers: Questions
    """Tokens that cover a candidate, or run past the end of the text itself."""
    heads: Questions
    """Tokens that end inside a candidate and have no node."""
    ids: Ints
    """(H,) the heads' ids."""
    ends: Ints
    """(E, 2) rows, and nodes after which EOS ends the text."""


def ask(
    lattices: Sequence[Lattice],
    ranges: Ranges,
    numbers: Ints,
    endings: Sequence[Sequence[int]],
    canonical: bool = False,
) -> Asked:
    """Return the questions of R rows.

    Args:
        lattices: one for each row.
        ranges: of the additions that candidates are.
        numbers: (R, C) the candidates' numbers there.
        endings: for each row, the candidates that end the text.
        canonical: whether only canonical tokenisations count. Else a text may end in any tokens.
    """
    counts = [len(lattice.nodes) for lattice in lattices]
    offsets = np.cumsum([0, *counts[:-1]], dtype=np.int64)
    firsts = offsets.tolist()
    every = [
        (first, node) for first, lattice in zip(firsts, lattices, strict=True)
        for node in lattice.nodes
    ]  # fmt: skip
    parents = [-1 if node.parent < 0 else first + node.parent for first, node in every]
    columns = numbers.shape[1] + 1
    if canonical:
        heads = _led(lattices, firsts, columns)
    else:
        heads = _heads(lattices, firsts, ranges, numbers, endings)
    ends = [
        (row, first + node)
        for row, (first, lattice) in enumerate(zip(firsts, lattices, strict=True))
        for node in (lattice.ends() if endings[row] and not canonical else [lattice.end])
    ]
    return Asked(
        offsets,
        parents,
        [node.token for _, node in every],
        _covers(lattices, firsts, ranges, numbers),
        Questions.of([head[:4] for head in heads]),
        np.array([head[4] for head in heads], dtype=np.int64),
        np.array(ends, dtype=np.int64).reshape(-1, 2),
    )


def _covers(
    lattices: Sequence[Lattice], firsts: Sequence[int], ranges: Ranges, numbers: Ints
) -> Questions:
    """Return the ranges that cover candidates, of all nodes, and those past the end of the texts."""
    plain: list[tuple[int, int]] = []
    behind: list[tuple[int, int, bytes]] = []
    beyond: list[tuple[int, int, bytes]] = []
    past: Found = []
    columns = numbers.shape[1] + 1
    for row, (first, lattice) in enumerate(zip(firsts, lattices, strict=True)):
        text = (row + 1) * columns - 1
        for place, node in enumerate(lattice.nodes, first):
            if node.ahead:
                beyond.append((row, place, node.ahead))
            elif not node.back:
                plain.append((row, place))
                past.append((text, place, 0, -1))
            else:
                if ranges.followers(node.back) is not None:
                    behind.append((row, place, node.back))
                past += [(text, place, *span) for span in lattice.past(node)]
    tables: list[Found | Ints] = [past]
    if plain:
        rows, nodes = np.array(plain).T
        begins, ends = ranges.begins[numbers[rows]], ranges.ends[numbers[rows]]
        which, column = np.nonzero(begins < ends)
        cells = rows[which] * columns + column
        spans = (begins[which, column], ends[which, column])
        tables.append(np.column_stack([cells, nodes[which], *spans]))
    for listed, find in ((behind, ranges.behind), (beyond, ranges.beyond)):
        if listed:
            rows, nodes = np.array([entry[:2] for entry in listed]).T
            found = find(numbers[rows], [entry[2] for entry in listed])
            cells = rows[found[:, 0]] * columns + found[:, 1]
            tables.append(np.column_stack([cells, nodes[found[:, 0]], found[:, 2:]]))
    return Questions.of(*tables)


def _led(
    lattices: Sequence[Lattice], firsts: Sequence[int], columns: int
) -> list[tuple[int, int, int, int, int]]:
    """Return the tokens of `leads` that have no node, and their ids."""
    return [
        (row * columns + lead.column, first + lead.node, place, place + 1, lead.token)
        for row, (first, lattice) in enumerate(zip(firsts, lattices, strict=True))
        for lead in lattice.leads
        if lead.token not in lattice.nodes[lead.node].children
        for place in [lattice.vocabulary.places[lead.token]]
    ]


def _heads(
    lattices: Sequence[Lattice],
    firsts: Sequence[int],
    ranges: Ranges,
    numbers: Ints,
    endings: Sequence[Sequence[int]],
) -> list[tuple[int, int, int, int, int]]:
    """Return all tokens that end inside a candidate and have no node, and their ids."""
    pieces, columns = ranges.additions.pieces, numbers.shape[1] + 1
    found = []
    for row, (first, lattice) in enumerate(zip(firsts, lattices, strict=True)):
        texts = [pieces[number] for number in numbers[row].tolist()]
        candidates = [(column, text) for column, text in enumerate(texts) if text]
        for column, node, token in lattice.heads([*candidates, (columns - 1, b"")], endings[row]):
            place = lattice.vocabulary.places[token]
            found.append((row * columns + column, first + node, place, place + 1, token))
    return found
