"""`ivg guide`: what would become of a guide over a base, by tokenizers and configurations alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ivgcli.errors import ModelError
from ivgcli.models.sizes import Found, configuration
from ivgcli.models.vocabulary import VocabularyMatch, compare, kind_of
from ivgcli.recipes import ExplicitSpec, GenerateRecipe, ImplicitSpec, ModelSpec
from ivgcli.workflows.cast import Cast, Part
from ivgcli.workflows.plan import Plan
from ivgcli.workflows.reckoning import Course
from ivgcli.workflows.survey import Asked, Survey

Values = Literal["implicit", "token-q", "scalar", "text"]
"""What a network of a guide gives: log-probabilities, a value for each next token, one for each prefix of the base's
tokens, or one for a text that it reads for itself."""

BY_ID, BY_TABLE, IN_BYTES = "directly by id", "exactly, by a table of ids", "in bytes"
IN_TOKENS, AS_TEXT, REFUSED = "in the base's tokens", "as text", "refused"
AGAINST_MEANING = "by id, though the ids mean other things"

PER_TOKEN = "its values are of other tokens than the base's"


@dataclass(frozen=True)
class Use:
    """What is done with a network in one role."""

    how: str
    why: str = ""
    """Why it is refused."""

    def __str__(self) -> str:
        """Return it as the end of a sentence."""
        return f"{self.how}: {self.why}" if self.why else self.how


@dataclass(frozen=True)
class Member:
    """One network, or callable, of a guide."""

    part: Part
    """Its name, role and weights."""
    tokens: Use
    """What guiding tokens would do with it."""
    chunks: Use
    """What ranking chunks, or whole responses, would do with it."""
    match: VocabularyMatch | None = None
    """How its vocabulary compares with the base's; None: a callable, which has none."""
    kind: str | None = None
    """Kind of its tokenizer; None: a callable."""

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return {
            **_part_to_json(self.part),
            "kind": self.kind,
            "vocabulary": None if self.match is None else self.match.to_json(),
            "token_guidance": {"how": self.tokens.how, "why": self.tokens.why or None},
            "chunk_ranking": {"how": self.chunks.how, "why": self.chunks.why or None},
        }


@dataclass(frozen=True)
class Compatibility:
    """What would become of a guide over a base."""

    guide: str
    """Its name."""
    base: Part
    kind: str
    """Kind of the base's tokenizer."""
    size: int
    """Tokens that it has."""
    vocabulary: str
    """As in a recipe."""
    members: tuple[Member, ...]

    @property
    def weights(self) -> int | None:
        """Bytes of all weights; None if those of one network are not known."""
        parts = (self.base, *(member.part for member in self.members))
        return Plan("", (), parts).weights

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        base = {**_part_to_json(self.base), "kind": self.kind, "tokens": self.size}
        return {
            "guide": self.guide,
            "vocabulary": self.vocabulary,
            "base": base,
            "networks": [member.to_json() for member in self.members],
            "weight_bytes": self.weights,
        }


def explain(recipe: GenerateRecipe) -> Compatibility:
    """Return what would become of a recipe's guide over its base.

    Args:
        recipe: base, guide, engine and vocabulary count; all else is for another day.

    Raises:
        ModelError: the tokenizer of one of the models cannot be had.
    """
    guide = recipe.guide
    assert guide is not None, "the command asks for one"
    survey = Survey(recipe.engine)
    nothing = Asked("", None, None)
    cast = Cast(survey, nothing, recipe.base, Course(), 1, 1, recipe.vocabulary)
    cast.add_implicit(guide.implicit, guides=False)
    cast.add_explicit(guide.explicit, guides=False, ranks=True)
    base, *parts = cast.parts()
    reader = _Reader(survey, recipe)
    specs: list[ModelSpec | ExplicitSpec] = [*_models(guide.implicit), *guide.explicit]
    members = tuple(reader.member(spec, part) for spec, part in zip(specs, parts, strict=True))
    kind, _ = kind_of(reader.tokenizer, reader.eos)
    size = len(reader.tokenizer.get_vocab())
    return Compatibility(guide.name, base, kind, size, recipe.vocabulary, members)


def _models(pairs: Sequence[ImplicitSpec]) -> Iterator[ModelSpec]:
    """Yield the models of implicit values, as `Cast` makes parts of them."""
    for pair in pairs:
        for spec in (pair.tuned, pair.reference) if pair.model is None else (pair.model,) * 2:
            assert spec is not None, "the recipe has been checked"
            yield spec


class _Reader:
    """Reads the tokenizers of a guide beside the base's."""

    def __init__(self, survey: Survey, recipe: GenerateRecipe) -> None:
        self.survey, self.base, self.vocabulary = survey, recipe.base, recipe.vocabulary
        found = survey.find(recipe.base, "language model")
        self.tokenizer = self._tokenizer(recipe.base, found)
        self.width = None if found.size is None else found.size.outputs
        self.eos = _ends(recipe.base, found, self.tokenizer)

    def member(self, spec: ModelSpec | ExplicitSpec, part: Part) -> Member:
        """Return what would become of one network or callable."""
        model = spec if isinstance(spec, ModelSpec) else spec.model
        if model is None or part.found is None:
            return Member(part, Use(AS_TEXT), Use(AS_TEXT))
        values = "implicit" if isinstance(spec, ModelSpec) else self._values(spec, part.found)
        tokenizer = self._tokenizer(model, part.found)
        size, ends = part.found.size, _ends(model, part.found, tokenizer)
        width = None if size is None or values not in ("implicit", "token-q") else size.outputs
        match = compare(self.tokenizer, tokenizer, self.width, width, self.eos, ends)
        tokens, chunks = (_use(values, match, self.vocabulary, each) for each in (True, False))
        return Member(part, tokens, chunks, match, kind_of(tokenizer, ends)[0])

    def _values(self, spec: ExplicitSpec, found: Found) -> Values:
        """Return what an explicit value gives, by its configuration."""
        size = found.size
        if spec.by_text or (size is not None and size.encoder):
            return "text"
        # A head may leave out rows of the embedding that pad it.
        wide = size is not None and 2 * size.outputs > size.vocabulary
        per_token = spec.head == "token-q" or (spec.head == "auto" and wide)
        return "token-q" if per_token else "scalar"

    def _tokenizer(self, spec: ModelSpec, found: Found) -> Any:
        """Return a model's tokenizer.

        Raises:
            ModelError: it cannot be had.
        """
        tokenizer = self.survey.tokenizer(spec)
        if tokenizer is not None:
            return tokenizer
        if found.reference is None:
            raise ModelError(spec.model, str(found.missing), "check its name")
        what = "its tokenizer cannot be had"
        agreement, sentence = self.survey.vocabularies(self.base, spec)
        if agreement is not None and spec.model != self.base.model:
            told = "it has the base's vocabulary" if agreement == "same" else sentence
            what = f"{what}; by the table of published sizes, {told}"
        hint = "download it, tokenizer.json and config.json are enough, or give a folder with them"
        raise ModelError(spec.model, what, hint)


def _ends(spec: ModelSpec, found: Found, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a model's responses, its tokenizer's own first."""
    named: Any = None
    # A GGUF file has its tokenizer and its configuration from the same entries, and is slow to read.
    if found.reference is not None and not found.reference.source.endswith(".gguf"):
        try:
            named = getattr(configuration(spec, found.reference), "eos_token_id", None)
        except ModelError:
            named = None  # the tokenizer's has to do
    more = named if isinstance(named, (list, tuple)) else [named]
    ids = (each for each in (tokenizer.eos_token_id, *more) if each is not None)
    return tuple(dict.fromkeys(map(int, ids)))


def _use(values: Values, match: VocabularyMatch, vocabulary: str, guiding: bool) -> Use:
    """Return what is done with a network, by what it gives and how its vocabulary compares.

    Args:
        values: what it gives.
        match: of its vocabulary with the base's.
        vocabulary: as in a recipe.
        guiding: whether tokens are guided; else chunks are ranked.
    """
    if values == "text":
        return Use(AS_TEXT)
    if vocabulary == "bytes" and guiding and values == "implicit" and match.guidable:
        return Use(IN_BYTES)
    if match.same:
        return Use(BY_ID if guiding else IN_TOKENS)
    if vocabulary == "ids":
        return Use(AGAINST_MEANING)
    if vocabulary == "same":
        return Use(REFUSED, "vocabulary: same")
    if match.exact:
        return Use(BY_TABLE if guiding else f"{IN_TOKENS}, by a table of ids")
    if values == "token-q":
        return Use(REFUSED, PER_TOKEN)
    if values == "scalar" or not guiding:
        return Use(AS_TEXT)
    return Use(IN_BYTES) if match.refusal is None else Use(REFUSED, match.refusal)


def _part_to_json(part: Part) -> dict[str, Any]:
    """Return a part's name and weights as what JSON can hold."""
    found = part.found
    return {
        "role": part.role,
        "model": part.name,
        "weight_bytes": part.weights,
        "format": part.format or None,
        "told_by": None if found is None else found.told_by,
        "missing": None if found is None else found.missing,
        "notes": list(part.notes),
    }
