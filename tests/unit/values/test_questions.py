"""Planning by tables, for many rows and candidates, against planning them one by one, on published tokenizers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from ivgcli.models.continued import Continued
from ivgcli.values.additions import Additions, Ints, Ranges
from ivgcli.values.forks import Fork
from ivgcli.values.lattice import Lattice
from ivgcli.values.plan import Plan
from ivgcli.values.precision import Precision
from ivgcli.values.questions import Asked, ask
from tests.oracles_planning import Range, covers, look_ahead, past
from tests.real_tokenizers import named, vocabulary
from tests.texts import TEXTS

PAIRS = [
    ("smollm2", "mistral"),
    ("mistral", "smollm2"),
    ("tekken", "mistral-metaspace"),
    ("smollm2", "qwen"),
    ("gpt2", "unigram"),
]
"""The base, whose tokens are candidates, and the guide. Qwen's composes characters."""
ROWS, CANDIDATES, NODES = 40, 48, 4


@functools.cache
def additions(base: str) -> Additions:
    return Additions(vocabulary(base).pieces, vocabulary(base).opens_with_space)


@functools.cache
def planned(base: str, guide: str) -> tuple[Additions, Ranges, Continued]:
    known, reader = additions(base), vocabulary(guide)
    return known, Ranges(known, reader), Continued(known.pieces, reader)


def text_of(guide: str, random: np.random.Generator) -> Canonical:
    """Return a text that ends anywhere, in the middle of a character, too; some have no prompt, others no response."""
    written = TEXTS[random.choice([*TEXTS])].encode()
    begin = int(random.integers(0, len(written) - 120))
    cut = written[begin : begin + 120].decode(errors="ignore")
    prompt = ["", cut[:8], cut[:40], f"Tell me.{named(guide).eos_token}\n"][random.integers(4)]
    ids = named(guide).backend_tokenizer.encode(prompt, add_special_tokens=False).ids
    text = Canonical(vocabulary(guide), ids)
    more = cut[len(prompt) :].encode() if prompt in cut else cut.encode()
    text.append(more[: random.integers(0, 60)])
    return text


@dataclass
class Texts:
    """What forks and plans ask of a reader."""

    vocabulary: ByteVocabulary
    texts: list[Canonical]

    def first_node(self, row: int) -> int:
        ids = self.texts[row].ids
        return max(min(self.texts[row].root, len(ids)), len(ids) - NODES + 1)

    def slot(self, row: int, node: int) -> int:
        return node

    def trunk(self, row: int) -> Lattice:
        """Return a row's trunk."""
        text, begin = self.texts[row], self.first_node(row)
        ends = [text.end(count) for count in range(begin, len(text.ids) + 1)]
        pending = [bytes(text.text[end:]) + text.held for end in ends]
        return Lattice(self.vocabulary, text.ids[begin:], pending)


@pytest.mark.parametrize(("base", "guide"), PAIRS)
@pytest.mark.parametrize("mass", [0.0, 0.1])
def test_tables_say_of_all_rows_what_a_loop_says_of_each_candidate(
    base: str, guide: str, mass: float
) -> None:
    """Nodes, leads and ranges; behind half characters and spaces, of EOS, special and padded ids, too."""
    random = np.random.default_rng(3)
    known, ranges, continued = planned(base, guide)
    reader = Texts(vocabulary(guide), [text_of(guide, random) for _ in range(ROWS)])
    opening = (random.random(ROWS) < 0.3) & vocabulary(base).opens_with_space
    ids = np.stack([candidates_of(base, random) for _ in reader.texts])
    numbers = known.numbers(ids, opening)
    chances = random.dirichlet(np.full(CANDIDATES, 0.2), ROWS)
    plan = Plan(
        [reader],
        known,
        {reader.vocabulary: ranges},
        Precision("canonical", 0.5, mass),
        [Fork(row, [reader]) for row in range(ROWS)],
        numbers,
        np.isin(ids, list(vocabulary(base).eos)),
    )
    plan.look_ahead({reader.vocabulary: continued}, chances)
    lattices = [fork.lattices[0] for fork in plan.forks]
    endings = [np.flatnonzero(each).tolist() for each in plan.ending]
    asked = ask(lattices, ranges, numbers, endings, canonical=True)
    heads = [each.tolist() for each in (asked.heads.cell, asked.heads.node, asked.ids)]
    seen = Counter(opening=int(opening.sum()))
    for row, lattice in enumerate(lattices):
        pieces = [vocabulary(base).text([token]) for token in ids[row].tolist()]
        if opening[row]:
            pieces = [piece.removeprefix(b" ") for piece in pieces]
        text, begin, loop = reader.texts[row], reader.first_node(row), reader.trunk(row)
        leads = look_ahead(loop, text, begin, pieces, chances[row], mass)
        assert lattice.nodes == loop.nodes
        first, columns = int(asked.offsets[row]), CANDIDATES + 1
        cells = zip(*heads, strict=True)
        mine = {(c % columns, n - first, t) for c, n, t in cells if c // columns == row}
        assert mine == leads
        found = told(asked, row, columns)
        want = [*covers(loop, pieces), *past(loop, CANDIDATES)]
        assert spread(found) == spread(want)
        seen["held"] += bool(text.held)
        seen["leads"] += len(leads)
        for candidate, node, _, _ in found:
            seen["behind"] += bool(lattice.nodes[node].back) and candidate < CANDIDATES
            seen["beyond"] += bool(lattice.nodes[node].ahead)
    assert seen["held"]
    assert seen["behind"] > 20
    assert seen["opening"] or not vocabulary(base).opens_with_space
    assert seen["beyond"] > 20 or mass > 0
    assert seen["leads"] > 20 or mass == 0


def candidates_of(base: str, random: np.random.Generator) -> Ints:
    """Return ids of a base: EOS, special and padded ones, single bytes, common and rare ones."""
    known = vocabulary(base)
    single = [t for t, piece in enumerate(known.pieces) if piece and len(piece) == 1]
    some = [*known.eos, known.size, known.size + 7, *random.choice(single, 12).tolist()]
    common = random.integers(0, min(3000, known.size), CANDIDATES // 2).tolist()
    others = random.integers(0, known.size, CANDIDATES).tolist()
    return np.array(list(dict.fromkeys([*some, *common, *others]))[:CANDIDATES])


def spread(found: Iterable[Range]) -> Counter[Range]:
    """Return ranges, those of the text itself place by place."""
    return Counter(
        (candidate, node, place, place + 1) if each else (candidate, node, begin, end)
        for candidate, node, begin, end in found
        for each in [candidate == CANDIDATES and end >= 0]
        for place in (range(begin, end) if each else [begin])
    )


def told(asked: Asked, row: int, columns: int) -> list[Range]:
    """Return a row's ranges as (candidate, node, begin, end)."""
    table = np.stack(asked.covers, axis=1)
    table = table[table[:, 0] // columns == row]
    table[:, 0] %= columns
    table[:, 1] -= asked.offsets[row]
    return [tuple(each) for each in table.tolist()]


def test_ids_beyond_the_vocabulary_add_nothing_and_a_first_space_is_left_out_once() -> None:
    known = Additions([b" a", b"a", None, b" ", b"  a"], opens_with_space=True)
    numbers = known.numbers(np.array([[0, 1, 2, 3, 4, 5, 99]] * 2), [False, True])
    found = [[known.pieces[number] for number in row] for row in numbers.tolist()]
    assert found[0] == [b" a", b"a", None, b" ", b"  a", None, None]
    assert found[1] == [b"a", b"a", None, b"", b" a", None, None]
