"""Lattices of tokenisations on synthetic distributions: bounds contain the sum over all tokenisations, to rounding."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from ivgcli.values.additions import Additions, Ranges
from ivgcli.values.bounds import Bounds, bound
from ivgcli.values.lattice import Lattice
from ivgcli.values.openings import canonical_opening
from ivgcli.values.questions import ask
from tests.oracles_bytes import END, STOP, toy
from tests.real_tokenizers import vocabulary as named_vocabulary

CASES = 10_000
ROWS = 8
"""Lattices that are bounded together."""
EXACT = 1e-12
"""Sums of at most some hundred products of probabilities, in float64."""

Path = tuple[int, ...]


@functools.cache
def vocabulary(name: str) -> ByteVocabulary:
    return ByteVocabulary(toy(name).tokenizer, (END, STOP))


@functools.cache
def matching(name: str, rest: bytes) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Return (token, bytes) of the pieces inside `rest` or equal to it, and the tokens that cover it."""
    pieces = toy(name).pieces
    inside = tuple((t, len(p)) for t, p in enumerate(pieces) if p and rest.startswith(p))
    return inside, tuple(t for t, p in enumerate(pieces) if p and p.startswith(rest))


@dataclass
class Model:
    """A distribution for each sequence of tokens, at random; the reader of the lattices under test, too."""

    name: str
    seed: int
    known: dict[Path, np.ndarray] = field(default_factory=dict)
    sums: list[np.ndarray] = field(default_factory=list)
    """Running sums in byte order, by number."""

    def __post_init__(self) -> None:
        self.vocabulary = vocabulary(self.name)
        size = len(toy(self.name).pieces)
        others = [token for token in range(size) if token not in self.vocabulary.places]
        self.order = np.array([*self.vocabulary.order, *others])
        self.places = np.argsort(self.order)

    def chances(self, path: Path) -> np.ndarray:
        """Return the distribution after a path; some are nearly certain, some give tokens no probability at all."""
        if path not in self.known:
            random = np.random.default_rng([self.seed, *path])
            spread = random.choice([0.02, 0.3, 3.0])
            drawn = random.dirichlet(np.full(len(self.order), spread))
            drawn[drawn < 1e-12] = 0.0
            self.known[path] = drawn
        return self.known[path]

    def slot(self, path: Path) -> int:
        """Number the distribution after a path."""
        self.sums.append(np.concatenate([[0.0], np.cumsum(self.chances(path)[self.order])]))
        return len(self.sums) - 1

    def probabilities(self, slots: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        ends = np.where(ends < 0, len(self.order), ends)
        table = np.stack(self.sums)
        return table[slots, ends] - table[slots, begins]

    def exact(self, path: Path, rest: bytes, ended: bool = False) -> float:
        """Return the sum over all sequences of tokens that cover `rest`, or that end with it and are then ended."""
        chances = self.chances(path)
        if not rest:
            return float(chances[END] + chances[STOP]) if ended else 1.0
        inside, over = matching(self.name, rest)
        total = 0.0 if ended else sum(float(chances[token]) for token in over)
        for token, size in inside:
            if (size < len(rest) or ended) and chances[token] > 0:
                total += float(chances[token]) * self.exact((*path, token), rest[size:], ended)
        return total


@dataclass
class Case:
    """One row: a lattice, what the base might add, and what is true of it."""

    lattice: Lattice
    first: Path
    pieces: list[bytes]
    truth: np.ndarray
    """(C + 1,) of the candidates, the ending, and the text itself, as the lattice numbers them."""

    @property
    def ending(self) -> int:
        return len(self.pieces)

    def path(self, node: int) -> Path:
        return (*self.first, *self.lattice.path(node))


def case(model: Model, random: np.random.Generator, number: int, count: int) -> Case:
    """Return a row with a trunk of up to three tokens and, at times, a byte that no trunk token covers."""
    usable = [t for t, p in enumerate(toy(model.name).pieces) if p]
    trunk = random.choice(usable, random.integers(0, 4)).tolist()
    held = [b"", b"\xc3", b" "][random.integers(0, 3)]
    pieces = toy(model.name).pieces
    pending = [b"".join(pieces[t] for t in trunk[place:]) + held for place in range(len(trunk) + 1)]
    some = sorted({bytes(p) for p in random.choice([p for p in pieces if p], count)})
    some += [some[0] + some[-1]]
    first = (number,)
    truth = [model.exact(first, pending[0] + piece) for piece in some]
    truth += [model.exact(first, pending[0], True), model.exact(first, pending[0])]
    return Case(Lattice(model.vocabulary, trunk, pending), first, some, np.array(truth))


def bounded(model: Model, cases: list[Case]) -> Bounds:
    """Return the bounds of several rows at once; those with fewer candidates have empty columns before the last."""
    known = Additions([piece for each in cases for piece in each.pieces])
    width = max(len(each.pieces) for each in cases) + 1
    numbers = np.full((len(cases), width), known.size - 1)
    ending = np.zeros(numbers.shape, dtype=bool)
    first = 0
    for row, each in enumerate(cases):
        numbers[row, : len(each.pieces)] = range(first, first + len(each.pieces))
        ending[row, each.ending] = True
        first += len(each.pieces)
    slots = [
        [model.slot(each.path(node)) for node in range(len(each.lattice.nodes))] for each in cases
    ]
    lattices = [each.lattice for each in cases]
    endings = [[each.ending] for each in cases]
    asked = ask(lattices, Ranges(known, model.vocabulary), numbers, endings)
    return bound(model, asked, slots, ending)


def check(cases: list[Case], found: Bounds) -> int:
    """Require lower ≤ truth ≤ lower + gap everywhere, and return how many intervals were open."""
    opened = 0
    for row, each in enumerate(cases):
        use = [*range(len(each.pieces) + 1), found.lower.shape[1] - 1]
        lower, gap = found.lower[row, use], found.gap()[row, use]
        assert (lower <= each.truth * (1 + EXACT) + EXACT).all()
        assert (each.truth <= (lower + gap) * (1 + EXACT) + EXACT).all()
        opened += int((gap > 1e-3).sum())
    return opened


def grow(cases: list[Case], found: Bounds, random: np.random.Generator, share: float) -> int:
    """Give nodes to a random part of what is open, and return to how many."""
    columns, grown = found.lower.shape[1], 0
    for at in np.flatnonzero(found.masses > 0).tolist():
        if random.random() < share:
            each, column = cases[found.places[at] // columns], found.places[at] % columns
            piece = each.pieces[column] if column < len(each.pieces) else b""
            each.lattice.grow(int(found.nodes[at]), int(found.tokens[at]), piece)
            grown += 1
    return grown


def test_bounds_contain_the_sum_over_all_tokenisations_in_ten_thousand_cases():
    """Before and after random narrowing; a case is one candidate, ending or text of one row."""
    random = np.random.default_rng(0)
    checked = opened = seed = 0
    names = ["bytes", "pieces", "unigram", "words"]
    while checked < CASES:
        seed += 1
        model = Model(names[seed % 4], seed)
        cases = [case(model, random, number, 12) for number in range(ROWS)]
        for share in (0.3, 0.7, 0.0):
            model.sums.clear()
            found = bounded(model, cases)
            opened += check(cases, found)
            grow(cases, found, random, share)
        checked += sum(len(each.truth) for each in cases)
    assert opened > CASES / 10, "most intervals were points, which proves little"


@pytest.mark.parametrize("name", ["bytes", "pieces", "unigram", "words"])
def test_with_a_node_for_everything_the_bounds_meet_at_the_sum(name):
    random = np.random.default_rng(1)
    model = Model(name, 5)
    cases = [case(model, random, number, 6) for number in range(ROWS)]
    while grow(cases, found := bounded(model, cases), random, 1.0):
        pass
    assert found.gap().max() == 0
    for row, each in enumerate(cases):
        use = [*range(len(each.pieces) + 1), found.lower.shape[1] - 1]
        np.testing.assert_allclose(found.lower[row, use], each.truth, rtol=1e-9, atol=EXACT)


def test_among_canonical_tokenisations_only_the_trunk_ends_the_text():
    """The last of a, b after a context: EOS behind the trunk's tokens a, b and not behind the one token ab."""
    model = Model("bytes", 3)
    lattice = Lattice(model.vocabulary, [4, 5], [b"ab", b"b", b""])
    slots = [[model.slot(path) for path in ((7,), (7, 4), (7, 4, 5))]]
    ranges = Ranges(Additions([b"c", None]), model.vocabulary)
    asked = ask([lattice], ranges, np.array([[1]]), [[0]], canonical=True)
    found = bound(model, asked, slots, np.array([[True]]))
    chances = [model.chances(path) for path in ((7,), (7, 4), (7, 4, 5))]
    expected = chances[0][4] * chances[1][5] * (chances[2][END] + chances[2][STOP])
    assert found.lower[0, 0] == pytest.approx(expected, rel=1e-9)


def test_rows_that_are_patched_take_the_new_bounds_and_leave_the_others_alone():
    random = np.random.default_rng(2)
    model = Model("pieces", 9)
    cases = [case(model, random, number, 5) for number in range(4)]
    columns = max(len(each.pieces) for each in cases) + 2
    whole = bounded(model, cases)
    some = [1, 3]
    grow([cases[row] for row in range(4)], whole, random, 0.5)
    model.sums.clear()
    again = bounded(model, cases)
    whole.patch(some, _only(again, some, columns))
    for row in range(4):
        want = again if row in some else None
        if want is not None:
            np.testing.assert_array_equal(whole.lower[row], want.lower[row])
            np.testing.assert_allclose(whole.gap()[row], want.gap()[row], rtol=1e-12)
    check(cases, whole)


def _only(found: Bounds, rows: list[int], columns: int) -> Bounds:
    keep = np.isin(found.places // columns, rows)
    where = {row: number for number, row in enumerate(rows)}
    places = np.array([where[p // columns] * columns + p % columns for p in found.places[keep]])
    rest = (getattr(found, name)[keep] for name in ("nodes", "tokens", "masses"))
    return Bounds(found.lower[rows], places, *rest)


def test_a_wrong_value_off_s_moves_no_log_probability_by_more_than_the_bound():
    """p̃ ∝ p·e^g, q ∝ p·e^ĝ, ĝ = g on S and |g − ĝ| ≤ δ off it: |log p̃ − log q| ≤ log(1 + q̂(e^δ − 1)) on S, + δ off S.

    10,000 random instances of 2 to 30 tokens, half of them with every error at ±δ, where the bound is tight.
    """
    random = np.random.default_rng(0)
    size = 30
    p = random.gamma(random.choice([0.1, 1.0, 10.0], (CASES, 1)), size=(CASES, size)) + 1e-30
    p *= np.arange(size) < random.integers(2, size + 1, (CASES, 1))
    p /= p.sum(1, keepdims=True)
    g = random.normal(0, random.choice([0.1, 1.0, 5.0], (CASES, 1)), (CASES, size))
    off = random.random((CASES, size)) < random.random((CASES, 1))
    delta = random.exponential(2.0, (CASES, 1))
    error = delta * random.uniform(-1, 1, (CASES, size))
    error[::2] = np.sign(error[::2]) * delta[::2]
    ideal, guided = p * np.exp(g), p * np.exp(g + off * error)
    ideal /= ideal.sum(1, keepdims=True)
    guided /= guided.sum(1, keepdims=True)
    mass = (guided * off).sum(1, keepdims=True)
    limit = np.log1p(mass * np.expm1(delta)) + delta * off
    real = p > 0
    moved = np.abs(np.log(np.where(real, ideal, 1.0)) - np.log(np.where(real, guided, 1.0)))
    assert (moved <= limit + 1e-9).all()
    ratio = np.where(real & off, moved / np.maximum(limit, 1e-9), 0).max(1)
    assert np.mean(ratio > 0.5) > 0.3, "the bound was hardly ever near"


@pytest.mark.parametrize("name", ["bytes", "pieces", "words", "unigram"])
def test_no_beginning_of_a_canonical_tokenisation_is_ruled_out(name):
    """Whatever a text goes on with, the beginnings of its canonical tokens may open a tokenisation of what is known."""
    random, known, vocab = np.random.default_rng(4), toy(name), vocabulary(name)
    letters = list("aabbcc é")
    asked = 0
    for _ in range(300):
        prompt = "".join(random.choice(letters, 3))
        text = Canonical(vocab, known.tokenizer(prompt)["input_ids"])
        root, place, before = text.root, text.root_place, text.before
        text.append("".join(random.choice(letters, 8)).encode())
        whole, ids = bytes(text.text[place:]), text.ids[root:]
        ends = np.cumsum([len(known.pieces[token]) for token in ids]).tolist()
        for shown in range(1, len(whole)):
            for count, end in enumerate(ends, 1):
                if end < shown:
                    part = (whole[:shown], ids[:count], whole[end:shown])
                    asked += 1
                    assert canonical_opening(vocab, before, *part), part
    assert asked > 1000


def test_an_opening_that_the_tokenizer_never_takes_is_ruled_out():
    """`bytes` merges a and b first of all, so no tokenisation of a text in "ab…" begins with the token a."""
    vocab = vocabulary("bytes")
    single = vocab.ids[b"a"][0]
    assert not canonical_opening(vocab, "\n", b"abc", [single], b"bc")
    assert canonical_opening(vocab, "\n", b"abb", [vocab.ids[b"ab"][0]], b"b")


def test_a_unigram_models_opening_is_ruled_out_only_where_a_closed_place_settles_it():
    """Scores: a|b −6.3, ab −4.0; a|bca −8.3, ab|ca −10.4. No piece holds é with another character."""
    vocab = vocabulary("unigram")
    single, double, accent = (vocab.ids[piece][0] for piece in (b"a", b"ab", "é".encode()))
    assert canonical_opening(vocab, "é", b"ab", [single], b"b")
    assert canonical_opening(vocab, "é", "abé".encode(), [double], "é".encode())
    assert not canonical_opening(vocab, "é", "abé".encode(), [single], "bé".encode())
    assert not canonical_opening(vocab, "é", "abéa".encode(), [single], "béa".encode())
    assert vocab.canonical("abcaé".encode(), "é") == (single, vocab.ids[b"bca"][0], accent)


def test_an_unknown_token_at_the_end_of_the_text_is_no_token_that_runs_past_it():
    """A unigram model without byte fallback writes 好 as <unk>, which has no place in byte order."""
    known = named_vocabulary("unigram")
    assert known.unknown is not None
    text = Canonical(known, [])
    text.append("好".encode())
    assert text.ids[-1] == known.unknown
    lattice = Lattice(known, text.ids[-1:], ["好".encode(), b""])
    assert lattice.past(lattice.nodes[0]) == [known.span("好".encode())]
