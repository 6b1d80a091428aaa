"""One row in one step: the base's candidates as bytes, and each model's lattice of how they could be tokenised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.streams import Branches
from ivgcli.values.lattice import Lattice
from ivgcli.values.prefixes import PrefixReader

LONGEST = 16
"""Tokens of one candidate that are read ahead, at most."""


class Fork:
    """Where one row may go.

    Args:
        row: its number.
        choices: the base's candidates, C ids.
        base: the base's vocabulary.
        readers: of the models; their texts are up to date.
        opening: whether the base's decoder would leave out a space at the beginning of a candidate.
    """

    def __init__(
        self,
        row: int,
        choices: Sequence[int],
        base: ByteVocabulary,
        readers: Sequence[PrefixReader],
        opening: bool = False,
    ) -> None:
        self.row = row
        self.columns = len(choices) + 1
        """C candidates, and the text itself."""
        pieces = (base.text([token]) for token in choices)
        texts = (piece.removeprefix(b" ") if opening else piece for piece in pieces)
        self.candidates = [(number, text) for number, text in enumerate(texts) if text]
        """(number, bytes) of those that have text."""
        self.endings = [number for number, token in enumerate(choices) if token in base.eos]
        """Numbers of those that end it."""
        self.readers = readers
        self.lattices: list[Lattice] = []
        """One for each model; the same object twice where both would be alike."""
        self.begins: list[int] = []
        """For each model, how many of the row's tokens lie before the first node."""
        for reader in readers:
            self._lay(reader)
        self.slots: list[list[int]] = [
            [reader.slot(row, begin + node) for node in range(lattice.end + 1)]
            for reader, lattice, begin in zip(readers, self.lattices, self.begins, strict=True)
        ]
        """For each model, the number of each node's distribution."""

    def _lay(self, reader: PrefixReader) -> None:
        """Lay the trunk of one model's lattice."""
        text = reader.texts[self.row]
        begin = reader.first_node(self.row)
        pending = [
            bytes(text.text[text.end(count) :]) + text.held
            for count in range(begin, len(text.ids) + 1)
        ]
        trunk = text.ids[begin:]
        for other in self.lattices:
            same = other.vocabulary is reader.vocabulary and other.trunk == trunk
            if same and [node.back for node in other.nodes] == pending:
                self.lattices.append(other)
                break
        else:
            self.lattices.append(Lattice(reader.vocabulary, trunk, pending))
        self.begins.append(begin)

    @property
    def nodes(self) -> int:
        """Return the number of nodes of all lattices."""
        return sum(len(lattice.nodes) for lattice in self.lattices)

    def bytes_of(self, column: int) -> bytes:
        """Return the bytes of a candidate; none for the text itself."""
        return dict(self.candidates).get(column, b"")

    def look_ahead(self, chances: np.ndarray, mass: float) -> None:
        """Make nodes for what candidates of several tokens would be tokenised into, until `mass` is left over.

        Args:
            chances: (C,) the base's probabilities.
            mass: probability that candidates may hold together which stay without.
        """
        for side, lattice in enumerate(self.lattices):
            if lattice in self.lattices[:side]:
                continue
            for number, piece in self.candidates:
                self._continue(side, lattice, number, piece, False)
            waiting = sorted(lattice.leads, key=lambda lead: -chances[lead[0]])
            left = sum(chances[number] for number, _, _ in waiting)
            texts = dict(self.candidates)
            for place, (number, _, _) in enumerate(waiting):
                if left <= mass:
                    lattice.leads = waiting[place:]
                    break
                left -= chances[number]
                self._continue(side, lattice, number, texts[number], True)
            else:
                lattice.leads = []

    def _continue(self, side: int, lattice: Lattice, number: int, piece: bytes, grow: bool) -> None:
        """Make nodes along the canonical tokenisation of the text with a candidate, or note where one is missing."""
        text = self.readers[side].texts[self.row]
        kept, tail = text.after(piece)
        if len(tail) < 2 and not text.held:
            return
        node = kept - self.begins[side]
        if node < 0:
            return
        for token in tail[:LONGEST]:
            rest = lattice.rest(node, piece)
            if rest is None or token not in lattice.vocabulary.heads(rest):
                return
            known = lattice.nodes[node].children.get(token)
            if known is None and not grow:
                lattice.leads.append((number, node, token))
                return
            node = lattice.grow(node, token, piece) if known is None else known

    def unread(self, side: int) -> list[int]:
        """Return the nodes of a model's lattice that have no distribution and no child without one."""
        nodes = self.lattices[side].nodes
        first = len(self.slots[side])
        inner = {nodes[number].parent for number in range(first, len(nodes))}
        return [number for number in range(first, len(nodes)) if number not in inner]

    def path(self, side: int, number: int) -> list[int]:
        """Return the nodes from the trunk (left out) to a node."""
        lattice = self.lattices[side]
        found = []
        while number > lattice.end:
            found.append(number)
            number = lattice.nodes[number].parent
        return [*reversed(found)]

    def number(self, side: int, first: int) -> int:
        """Number the distributions of new nodes in the order of `branches`, from `first` on; return the next one."""
        known: dict[int, int] = {}
        for leaf in self.unread(side):
            path = self.path(side, leaf)
            for offset, node in enumerate(path):
                known.setdefault(node, first + offset)
            first += len(path)
        fresh = range(len(self.slots[side]), len(self.lattices[side].nodes))
        self.slots[side] += [known[node] for node in fresh]
        return first


def branches(side: int, reader: PrefixReader, forks: Sequence[Fork]) -> Branches:
    """Return the continuations whose reading gives every node of one model's lattices its distribution."""
    found = Branches(reader.stream, [], [], [])
    for fork in forks:
        nodes = fork.lattices[side].nodes
        for leaf in fork.unread(side):
            path = fork.path(side, leaf)
            found.rows.append(fork.row)
            found.starts.append(fork.begins[side] + nodes[path[0]].parent)
            found.tokens.append([nodes[node].token for node in path])
    return found
