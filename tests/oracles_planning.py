"""What guidance in bytes plans, one candidate and one node at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ivgcli.models.canonical import Canonical
from ivgcli.values.forks import LONGEST
from ivgcli.values.lattice import Lattice

Range = tuple[int, int, int, int]
"""Candidate, node, first place and the place behind the last; −1: all there is."""


def covers(lattice: Lattice, candidates: Sequence[bytes]) -> Iterator[Range]:
    """Yield the tokens that cover what is left to each candidate, from every node that leads there."""
    for number in range(len(lattice.nodes)):
        for candidate, piece in enumerate(candidates):
            rest = lattice.rest(number, piece) if piece else None
            if rest is None:
                continue
            begin, end = lattice.vocabulary.span(rest)
            if begin < end:
                yield candidate, number, begin, end


def past(lattice: Lattice, text: int) -> Iterator[Range]:
    """Yield the places of tokens that run past the end of the text itself, as candidate number `text`, one by one."""
    vocabulary = lattice.vocabulary
    for number, node in enumerate(lattice.nodes):
        if node.ahead:
            continue
        if not node.back:
            yield text, number, 0, -1
            continue
        done = {
            token
            for token, child in node.children.items()
            if not lattice.nodes[child].back and not lattice.nodes[child].ahead
        }
        for place in range(*vocabulary.span(node.back)):
            if int(vocabulary.order[place]) not in done:
                yield text, number, place, place + 1


def look_ahead(
    lattice: Lattice,
    text: Canonical,
    begin: int,
    candidates: Sequence[bytes],
    chances: Sequence[float],
    mass: float,
) -> set[tuple[int, int, int]]:
    """Make nodes along canonical tokenisations until `mass` is left; return (candidate, node, token) of the others.

    Args:
        lattice: of a text.
        text: that text.
        begin: how many of its tokens lie before the first node.
        candidates: their bytes; empty ones add nothing.
        chances: their probabilities.
        mass: what may be left.
    """
    leads = {}
    for number, piece in enumerate(candidates):
        if piece and (lead := _walk(lattice, text, begin, piece, False)):
            leads[number] = lead
    waiting = sorted(leads, key=lambda each: -chances[each])
    left = sum(chances[number] for number in waiting)
    for number in waiting:
        if left <= mass:
            break
        left -= chances[number]
        del leads[number]
        _walk(lattice, text, begin, candidates[number], True)
    return {
        (number, *lead)
        for number, lead in leads.items()
        if lead[1] not in lattice.nodes[lead[0]].children
    }


def _walk(
    lattice: Lattice, text: Canonical, begin: int, piece: bytes, grow: bool
) -> tuple[int, int] | None:
    """Follow the tokens of a text and a candidate; return the node and token where there is nothing to follow."""
    kept, tail = text.after(piece)
    if (len(tail) < 2 and not text.held) or kept < begin:
        return None
    node = kept - begin
    for token in tail[:LONGEST]:
        rest = lattice.rest(node, piece)
        if rest is None or token not in lattice.vocabulary.heads(rest):
            return None
        if token not in lattice.nodes[node].children and not grow:
            return node, token
        node = lattice.grow(node, token, piece)
    return None
