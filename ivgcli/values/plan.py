"""What one step of guidance in bytes asks of its models, for all rows at once."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.continued import Continued
from ivgcli.models.readings import Branches
from ivgcli.values.additions import Additions, Ints, Ranges
from ivgcli.values.bounds import Bounds, bound
from ivgcli.values.forks import Fork, branches
from ivgcli.values.lattice import Lattice
from ivgcli.values.precision import Precision
from ivgcli.values.prefixes import PrefixReader
from ivgcli.values.questions import ask


@dataclass(frozen=True)
class Plan:
    """R rows in one step."""

    readers: Sequence[PrefixReader]
    additions: Additions
    ranges: Mapping[ByteVocabulary, Ranges]
    """For each of the readers' vocabularies."""
    precision: Precision
    forks: Sequence[Fork]
    """One for each row."""
    numbers: Ints
    """(R, C) the candidates, as numbers of additions."""
    ending: NDArray[np.bool_]
    """(R, C) which of them end the text."""

    @property
    def columns(self) -> int:
        """Return C + 1: candidates, and the text itself."""
        return int(self.numbers.shape[1]) + 1

    @property
    def written(self) -> NDArray[np.bool_]:
        """Return which candidates (R, C) have text."""
        return self.additions.sizes[self.numbers] > 0

    def pieces(self, row: int, columns: Sequence[int]) -> list[bytes]:
        """Return the bytes of some of a row's candidates."""
        known = self.additions.pieces
        return [known[number] or b"" for number in self.numbers[row, columns].tolist()]

    def part(self, rows: Sequence[int]) -> Plan:
        """Return the same for some rows."""
        some, index = [self.forks[row] for row in rows], list(rows)
        return replace(self, forks=some, numbers=self.numbers[index], ending=self.ending[index])

    def look_ahead(
        self, continued: Mapping[ByteVocabulary, Continued], chances: NDArray[np.float64]
    ) -> None:
        """Make nodes for what candidates of several tokens would be tokenised into.

        Args:
            continued: for each of the readers' vocabularies.
            chances: (R, C) the base's probabilities.
        """
        for side, reader in enumerate(self.readers):
            rows = [row for row, fork in enumerate(self.forks) if fork.apart(side)]
            if not rows:
                continue
            texts = [reader.texts[self.forks[row].row] for row in rows]
            found = continued[reader.vocabulary].tails(texts, self.numbers[rows])
            for row, tails in zip(rows, found, strict=True):
                if not tails:
                    continue
                columns = [column for column, _, _ in tails]
                pieces = self.pieces(row, columns)
                masses = chances[row, columns].tolist()
                self.forks[row].look_ahead(side, tails, pieces, masses, self.precision.mass)

    def tails(self) -> list[Branches]:
        """Return what has to be read for the nodes without a distribution, for each model."""
        return [branches(side, reader, self.forks) for side, reader in enumerate(self.readers)]

    def keep(self, tails: Sequence[Branches], further: bool = False) -> None:
        """Give nodes the distributions that `tails`, read, have brought, beside those of before (`further`)."""
        for side, (reader, tail) in enumerate(zip(self.readers, tails, strict=True)):
            first = reader.look_further(tail) if further else reader.look_beyond(tail)
            for fork in self.forks:
                first = fork.number(side, first)

    def bounds(self) -> list[Bounds]:
        """Return each model's bounds of all candidates; models with the same lattices share the questions."""
        canonical = self.precision.tokenisations == "canonical"
        endings = [np.flatnonzero(each).tolist() for each in self.ending]
        found: list[Bounds] = []
        before: list[Lattice] = []
        for side, reader in enumerate(self.readers):
            lattices = [fork.lattices[side] for fork in self.forks]
            if not before or not all(map(operator.is_, lattices, before)):
                ranges = self.ranges[reader.vocabulary]
                asked = ask(lattices, ranges, self.numbers, endings, canonical)
                before = lattices
            slots = [fork.slots[side] for fork in self.forks]
            found.append(bound(reader, asked, slots, self.ending))
        return found
