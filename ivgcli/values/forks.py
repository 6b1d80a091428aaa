"""One row in one step: the base's candidates as bytes, and each model's lattice of how they could be tokenised."""

from __future__ import annotations

from collections.abc import Sequence

from ivgcli.models.continued import Tail
from ivgcli.models.readings import Branches
from ivgcli.values.lattice import Lattice
from ivgcli.values.prefixes import PrefixReader

LONGEST = 16
"""Tokens of one candidate that are read ahead, at most."""


class Fork:
    """Where one row may go.

    Args:
        row: its number.
        readers: of the models; their texts are up to date.
    """

    def __init__(self, row: int, readers: Sequence[PrefixReader]) -> None:
        self.row = row
        self.lattices: list[Lattice] = []
        """One for each model; the same object twice where both would be alike."""
        self.begins: list[int] = []
        """For each model, how many of the row's tokens lie before the first node."""
        for side, reader in enumerate(readers):
            begin = reader.first_node(row)
            known = [
                place
                for place, other in enumerate(readers[:side])
                if other.texts[row] is reader.texts[row] and self.begins[place] == begin
            ]
            self.lattices.append(self.lattices[known[0]] if known else self._trunk(reader, begin))
            self.begins.append(begin)
        self.slots: list[list[int]] = [
            [reader.slot(row, node) for node in range(begin, begin + lattice.end + 1)]
            for reader, lattice, begin in zip(readers, self.lattices, self.begins, strict=True)
        ]
        """For each model, the number of each node's distribution."""

    def _trunk(self, reader: PrefixReader, begin: int) -> Lattice:
        """Return the trunk of a model's lattice, or another model's that is alike."""
        text = reader.texts[self.row]
        trunk = text.ids[begin:]
        places = [text.end(count) for count in range(begin, len(text.ids) + 1)]
        tail, held = bytes(text.text[places[0] :]), text.held
        pending = [tail[place - places[0] :] + held for place in places]
        for other in self.lattices:
            same = other.vocabulary is reader.vocabulary and other.trunk == trunk
            if same and [node.back for node in other.nodes] == pending:
                return other
        return Lattice(reader.vocabulary, trunk, pending)

    @property
    def nodes(self) -> int:
        """Return the number of nodes of all lattices."""
        return sum(len(lattice.nodes) for lattice in self.lattices)

    def apart(self, side: int) -> bool:
        """Return whether a model's lattice is not an earlier one's, too."""
        return not any(self.lattices[side] is other for other in self.lattices[:side])

    def look_ahead(
        self,
        side: int,
        tails: Sequence[Tail],
        pieces: Sequence[bytes],
        chances: Sequence[float],
        mass: float,
    ) -> None:
        """Make nodes for what candidates of several tokens would be tokenised into, until `mass` is left over.

        Args:
            side: whose lattice they are made in.
            tails: the tokens of those candidates, from `Continued.tails`.
            pieces: their bytes.
            chances: the base's probabilities of them.
            mass: probability that candidates may hold together which stay without.
        """
        lattice = self.lattices[side]
        waiting = []
        for (column, kept, tail), piece, chance in zip(tails, pieces, chances, strict=True):
            node = kept - self.begins[side]
            lead = lattice.lead(column, node, tail[:LONGEST], piece) if node >= 0 else None
            if lead is not None:
                waiting.append((chance, piece, lead))
        waiting.sort(key=lambda each: -each[0])
        left = sum(chance for chance, _, _ in waiting)
        for place, (chance, piece, lead) in enumerate(waiting):
            if left <= mass:
                lattice.leads = [lead for _, _, lead in waiting[place:]]
                break
            left -= chance
            lattice.follow(lead, piece)

    def unread(self, side: int) -> list[int]:
        """Return the nodes of a model's lattice that have no distribution and no child without one."""
        nodes = self.lattices[side].nodes
        first = len(self.slots[side])
        if first == len(nodes):
            return []
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
        fresh = range(len(self.slots[side]), len(self.lattices[side].nodes))
        known: dict[int, int] = {}
        for leaf in self.unread(side):
            path = self.path(side, leaf)
            for offset, node in enumerate(path):
                known.setdefault(node, first + offset)
            first += len(path)
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
