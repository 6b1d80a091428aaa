"""The ways in which a model's tokens can run through pending text and into what the base may add to it.

P(text goes on with s) is the sum, over all sequences of tokens that cover the pending bytes and s, of their
probabilities. Each sequence is a path through a lattice of byte places; a node is a path's beginning, and what a model
says of the token behind a node is one range of its byte-sorted distribution for everything that covers the rest at
once. Only tokens that end inside the rest need nodes of their own: while one has none, its probability is the gap
between a lower and an upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ivgcli.models.byte_vocabulary import ByteVocabulary


@dataclass
class Node:
    """A path's beginning: what has been read up to some byte place."""

    parent: int
    """The node it comes from, −1 for the first one."""
    token: int
    """The token between the two, −1 for the first one."""
    back: bytes
    """What of the text is still to come after it; empty at the end of the text and beyond."""
    ahead: bytes = b""
    """What it has run ahead of the text: a candidate has to begin with that."""
    children: dict[int, int] = field(default_factory=dict)
    """Node numbers by token."""


class Questions(NamedTuple):
    """What has to be looked up in distributions, as parallel arrays."""

    candidate: np.ndarray
    """(Q,) int64 number of the candidate."""
    node: np.ndarray
    """(Q,) int64 number of the node."""
    begin: np.ndarray
    """(Q,) int64 first place of a range in byte order."""
    end: np.ndarray
    """(Q,) int64 the place behind its last; −1: all there is, tokens without text included."""

    @classmethod
    def of(cls, found: Iterable[tuple[int, int, int, int]]) -> Questions:
        """Return questions from their rows."""
        table = np.array(list(found), dtype=np.int64).reshape(-1, 4)
        return cls(*(table[:, column] for column in range(4)))

    def joined(self, other: Questions) -> Questions:
        """Return these questions and those."""
        return Questions(*(np.concatenate(both) for both in zip(self, other, strict=True)))


class Lattice:
    """The nodes for one row and one vocabulary, and the ranges that value candidates.

    The first nodes are the trunk: the canonical tokenisation of the text from some place on, the oldest first, the end
    of the text last.

    Args:
        vocabulary: of the model.
        trunk: the tokens between the trunk's nodes, oldest first; one node more than tokens.
        pending: for each node, the bytes from there to the end of the text.
    """

    def __init__(
        self, vocabulary: ByteVocabulary, trunk: Sequence[int], pending: Sequence[bytes]
    ) -> None:
        self.vocabulary = vocabulary
        self.trunk = list(trunk)
        """The tokens between the trunk's nodes."""
        self.nodes = [Node(-1, -1, pending[0])]
        for token, rest in zip(trunk, pending[1:], strict=True):
            self._add(len(self.nodes) - 1, token, rest, b"")
        self.excluded: set[tuple[int, int, bytes]] = set()
        """(node, token, rest of the candidate before it) of what no model would write."""
        self.leads: list[tuple[int, int, int]] = []
        """(candidate, node, token) where the canonical tokenisation of the text with a candidate goes on unread."""
        self.end = len(self.nodes) - 1
        """Number of the node at the end of the text (of its whole characters)."""

    def _add(self, parent: int, token: int, back: bytes, ahead: bytes) -> int:
        self.nodes[parent].children[token] = len(self.nodes)
        self.nodes.append(Node(parent, token, back, ahead))
        return len(self.nodes) - 1

    def grow(self, parent: int, token: int, candidate: bytes) -> int:
        """Return the node behind `token` at node `parent`, made if it is not there.

        Args:
            parent: number of a node.
            token: a token that ends inside the pending text and the candidate.
            candidate: bytes that it runs into.
        """
        known = self.nodes[parent].children.get(token)
        if known is not None:
            return known
        node = self.nodes[parent]
        piece = self.vocabulary.pieces[token] or b""
        if len(piece) <= len(node.back):
            return self._add(parent, token, node.back[len(piece) :], b"")
        over = len(node.ahead) + len(piece) - len(node.back)
        return self._add(parent, token, b"", candidate[:over])

    def path(self, number: int) -> list[int]:
        """Return the tokens from the first node to a node."""
        found = []
        while number > 0:
            found.append(self.nodes[number].token)
            number = self.nodes[number].parent
        return [*reversed(found)]

    def rest(self, number: int, candidate: bytes) -> bytes | None:
        """Return what has to be covered from a node on for the text to go on with `candidate`; None: not from there."""
        node = self.nodes[number]
        if not node.ahead:
            return node.back + candidate
        if len(candidate) > len(node.ahead) and candidate.startswith(node.ahead):
            return candidate[len(node.ahead) :]
        return None

    def covers(self, candidates: Sequence[tuple[int, bytes]]) -> Questions:
        """Return the ranges of all tokens that cover what is left to each candidate, from every node that leads there.

        Args:
            candidates: (number, bytes) pairs.
        """
        span = self.vocabulary.span
        found: list[tuple[int, int, int, int]] = []
        for number in range(len(self.nodes)):
            for candidate, text in candidates:
                rest = self.rest(number, text)
                if rest is None:
                    continue
                begin, end = span(rest)
                if begin < end:
                    found.append((candidate, number, begin, end))
        return Questions.of(found)

    def past(self, text: int) -> Questions:
        """Return the ranges of all tokens that run past the end of the text itself, as candidate number `text`.

        A token that ends there and has a node is left out: whatever follows it counts at that node.
        """
        vocabulary = self.vocabulary
        found: list[tuple[int, int, int, int]] = []
        for number, node in enumerate(self.nodes):
            if node.ahead:
                continue
            if not node.back:
                found.append((text, number, 0, -1))
                continue
            begin, end = vocabulary.span(node.back)
            within = (vocabulary.places[token] for token, child in node.children.items()
                      if not self.nodes[child].back and not self.nodes[child].ahead)  # fmt: skip
            for place in sorted(within):
                found.append((text, number, begin, place))
                begin = place + 1
            found.append((text, number, begin, end))
        return Questions.of(found)

    def led(self) -> tuple[Questions, np.ndarray]:
        """Return the tokens of `leads` that have no node, and their ids (Q,)."""
        places = self.vocabulary.places
        left = [lead for lead in self.leads if lead[2] not in self.nodes[lead[1]].children]
        found = ((each, node, places[token], places[token] + 1) for each, node, token in left)
        return Questions.of(found), np.array([token for _, _, token in left], dtype=np.int64)

    def heads(
        self, candidates: Sequence[tuple[int, bytes]], endings: Sequence[int] = ()
    ) -> tuple[Questions, np.ndarray]:
        """Return the tokens that end inside what is left to each candidate and have no node, and their ids (Q,).

        Args:
            candidates: (number, bytes) pairs.
            endings: numbers of candidates that end the text: for them a token may also end where the text does.
        """
        places, ids, excluded = self.vocabulary.places, self.vocabulary.ids, self.excluded
        wanted = [*candidates, *((number, b"") for number in endings)]
        ended = set(endings)
        found: list[tuple[int, int, int, int]] = []
        tokens: list[int] = []
        for number, node in enumerate(self.nodes):
            for candidate, text in wanted:
                rest = self.rest(number, text)
                if rest is None:
                    continue
                last = ids.get(rest, ()) if candidate in ended else ()
                for token in (*self.vocabulary.heads(rest), *last):
                    if token not in node.children and (number, token, rest) not in excluded:
                        found.append((candidate, number, places[token], places[token] + 1))
                        tokens.append(token)
        return Questions.of(found), np.array(tokens, dtype=np.int64)

    def ends(self) -> np.ndarray:
        """Return the nodes (E,) that stand exactly at the end of the text, half a character included."""
        at_end = [number for number, node in enumerate(self.nodes) if not (node.back or node.ahead)]
        return np.array(at_end, dtype=np.int64)
