"""The ways in which a model's tokens can run through pending text and into what the base may add to it.

P(text goes on with s) is the sum, over all sequences of tokens that cover the pending bytes and s, of their
probabilities. Each sequence is a path through a lattice of byte places; a node is a path's beginning, and what a model
says of the token behind a node is one range of its byte-sorted distribution for everything that covers the rest at
once. Only tokens that end inside the rest need nodes of their own: while one has none, its probability is the gap
between a lower and an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ivgcli.models.byte_vocabulary import ByteVocabulary

Tokens = tuple[int, ...]


@dataclass(slots=True)
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


class Lead(NamedTuple):
    """Where the canonical tokenisation of the text with a candidate goes on unread."""

    column: int
    """Of the candidate."""
    node: int
    token: int
    """What comes after the node."""
    kept: int
    """The node behind the tokens that text and candidate share with the text."""
    tail: Tokens
    """All tokens behind it."""


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
        self.leads: list[Lead] = []
        """Of candidates that nothing has been read ahead for."""
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

    def lead(self, column: int, kept: int, tail: Tokens, candidate: bytes) -> Lead | None:
        """Return where a candidate's canonical tokenisation leaves the nodes; None if it covers it before that.

        Args:
            column: the candidate's.
            kept: number of a node.
            tail: the tokens behind it.
            candidate: the candidate's bytes.
        """
        node = kept
        for token in tail:
            if not self._inside(node, token, candidate):
                return None
            known = self.nodes[node].children.get(token)
            if known is None:
                return Lead(column, node, token, kept, tail)
            node = known
        return None

    def follow(self, lead: Lead, candidate: bytes) -> None:
        """Make nodes along the tokens of a lead, up to the one that covers the candidate."""
        node = lead.kept
        for token in lead.tail:
            if not self._inside(node, token, candidate):
                return
            node = self.grow(node, token, candidate)

    def _inside(self, number: int, token: int, candidate: bytes) -> bool:
        """Return whether a token at a node ends inside what is left to a candidate there."""
        rest, piece = self.rest(number, candidate), self.vocabulary.pieces[token]
        if not rest or not piece:
            return False
        return len(piece) < len(rest) and rest.startswith(piece)

    def past(self, node: Node) -> list[tuple[int, int]]:
        """Return the ranges of all tokens that run past the end of the text from a node before it.

        A token that ends there and has a node is left out: whatever follows it counts at that node.
        """
        vocabulary = self.vocabulary
        begin, end = vocabulary.span(node.back)
        # The unknown token is not among those that begin with these bytes, wherever it ends.
        within = [
            vocabulary.places[token]
            for token, child in node.children.items()
            if not (self.nodes[child].back or self.nodes[child].ahead)
            and token in vocabulary.places
        ]
        found = []
        for place in sorted(within):
            found.append((begin, place))
            begin = place + 1
        return [*found, (begin, end)]

    def heads(
        self, candidates: Sequence[tuple[int, bytes]], endings: Sequence[int] = ()
    ) -> list[tuple[int, int, int]]:
        """Return (number, node, token) of the tokens that end inside what is left to a candidate and have no node.

        Args:
            candidates: (number, bytes) pairs.
            endings: numbers of candidates that end the text: for them a token may also end where the text does.
        """
        ids, excluded = self.vocabulary.ids, self.excluded
        wanted = [*candidates, *((number, b"") for number in endings)]
        ended = set(endings)
        found: list[tuple[int, int, int]] = []
        for number, node in enumerate(self.nodes):
            for candidate, text in wanted:
                rest = self.rest(number, text)
                if rest is None:
                    continue
                last = ids.get(rest, ()) if candidate in ended else ()
                for token in (*self.vocabulary.heads(rest), *last):
                    if token not in node.children and (number, token, rest) not in excluded:
                        found.append((candidate, number, token))
        return found

    def ends(self) -> list[int]:
        """Return the nodes that stand exactly at the end of the text, half a character included."""
        return [number for number, node in enumerate(self.nodes) if not (node.back or node.ahead)]
