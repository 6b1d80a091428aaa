"""From a recipe file, overrides, flags and guides to one validated recipe, or all its problems."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ivgcli.errors import RecipeError
from ivgcli.recipes import references, syntax
from ivgcli.recipes.guide import CALLABLE, Guide
from ivgcli.recipes.judging import JudgeRecipe
from ivgcli.recipes.reporting import ReportRecipe
from ivgcli.recipes.schema import Decoding
from ivgcli.recipes.sentences import describe, show
from ivgcli.recipes.syntax import KeyPath
from ivgcli.recipes.training import Training

Recipe = TypeVar("Recipe", bound=Decoding | Training | JudgeRecipe | ReportRecipe)

SECRET = re.compile(r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,})")
"""A Hugging Face token or an API key."""

FLAGS = {"base.model": "--base", "reward.label": "--reward-label"}
"""Flags that are not named like the last part of their key."""


def load(
    kind: type[Recipe],
    path: str | Path | None = None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    guides: Sequence[str] = (),
) -> Recipe:
    """Return the recipe that a file, overrides, flags and guides add up to.

    A flag beats `--set`, which beats the file, which beats the default. Guides given here replace
    the file's; the keys of overrides and flags reach into whichever guide is in force.

    Args:
        kind: the recipe of a command, such as `GenerateRecipe`.
        path: YAML file; None starts from the defaults.
        sets: `KEY=VALUE` each, the key dotted (`guide.explicit.0.weight`), the value YAML.
        flags: dotted key to value; None means that the flag is not given.
        guides: references, the later filling in or replacing what the earlier has.

    Raises:
        RecipeError: telling every problem at once, each with its place, key and the nearest
            known key.
    """
    draft = _Draft("command line" if path is None else str(path))
    if path is not None:
        draft.start(syntax.read(Path(path)))
    overrides = [_split(text) for text in sets]
    layers = [(name, "--guide") for name in guides]
    layers = layers or [(value, "--set") for key, value in overrides if key == ("guide",)][-1:]
    draft.resolve_guide(layers, None if path is None else Path(path).parent)
    for key, value in overrides:
        if key != ("guide",):
            draft.assign(key, value, "--set")
    for dotted, value in (flags or {}).items():
        if value is not None:
            draft.assign(_key(dotted), value, _flag(dotted))
    return draft.validate(kind)


def _flag(dotted: str) -> str:
    """Return the flag that sets a key, if there is one."""
    return FLAGS.get(dotted, "--" + dotted.rpartition(".")[2].replace("_", "-"))


def _split(text: str) -> tuple[KeyPath, Any]:
    """Return the key and the value of one `KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        # The text is not repeated: it may be a value, and a value may be a secret.
        raise RecipeError("--set", "expected KEY=VALUE", "for example --set token.weight=0.5")
    return _key(key.strip()), syntax.parse(value, f"--set {key.strip()}").value


def _key(dotted: str) -> KeyPath:
    """Return a dotted key as a path; all-digit parts are list indices."""
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


class _Draft:
    """A recipe before validation: raw values, and where each of them came from."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.raw: dict[str, Any] = {}
        self.places: dict[KeyPath, str] = {}

    def start(self, document: syntax.Document) -> None:
        """Take over a recipe file; an empty one holds the defaults."""
        if document.value is not None and not isinstance(document.value, dict):
            raise RecipeError(self.source, "expected keys and values", "see ivg --print-recipe")
        self.raw = copy.deepcopy(document.value or {})
        self.places = dict(document.places)

    def resolve_guide(self, layers: list[tuple[Any, str]], beside: Path | None) -> None:
        """Put the guide itself where the recipe or `layers` refer to one."""
        _refuse_secrets(self.raw, self.places, self.source)
        if not layers:
            own = self.raw.get("guide")
            if not own or isinstance(own, dict):
                return
            place = self.places.get(("guide",), self.source)
            layers = [(each, place) for each in (own if isinstance(own, list) else [own])]
        merged = references.resolve(layers, beside)
        self.raw["guide"] = copy.deepcopy(merged.value)
        self.places = {path: place for path, place in self.places.items() if path[0] != "guide"}
        self.places[("guide",)] = layers[-1][1]
        self.places.update({("guide", *path): place for path, place in merged.places.items()})

    def assign(self, path: KeyPath, value: Any, place: str) -> None:
        """Set one key, reaching into lists of one and turning a model's name into its mapping."""
        spoken = ".".join(map(str, path))
        node: Any = self.raw
        walked: KeyPath = ()
        for part in path[:-1]:
            step = _step(node, part, spoken, place)
            node = _opened(node, step, spoken, place)
            walked += step
        step = _step(node, path[-1], spoken, place)
        node = _opened(node, step[:-1], spoken, place)
        if not step:
            raise RecipeError(place, f"{spoken}: there is one entry, and no list", "set its keys")
        node[step[-1]] = value
        walked += step
        for known in [known for known in self.places if known[: len(walked)] == walked]:
            del self.places[known]
        self.places[walked] = place

    def validate(self, kind: type[Recipe]) -> Recipe:
        """Return the recipe, or raise all its problems."""
        _refuse_secrets(self.raw, self.places, self.source)
        try:
            return kind.model_validate(self.raw)
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems = [self._problem(kind, each) for each in details]
            shortfall = kind.shortfall(self.raw) if kind.checked_key else None
            if shortfall and all(each["loc"] for each in details):
                problems.append(self._sentence((kind.checked_key,), shortfall))
            raise RecipeError.gather(self.source, problems) from None

    def _problem(self, kind: type[Recipe], detail: ErrorDetails) -> RecipeError:
        """Return one of pydantic's errors as a sentence of ours."""
        location: KeyPath = detail["loc"] or (kind.checked_key or "recipe",)
        if detail["type"] == "value_error":
            return self._sentence(location, str(detail["ctx"]["error"]))
        what, hint = describe(kind, detail)
        return self._sentence(location, f"{what} → {hint}" if hint else what)

    def _sentence(self, location: KeyPath, sentence: str) -> RecipeError:
        """Return an error at the place and under the key that the person wrote."""
        written = self._as_written(location)
        place = next(
            (
                self.places[written[:depth]]
                for depth in range(len(written), 0, -1)
                if written[:depth] in self.places
            ),
            "" if self.source == "command line" else self.source,
        )
        what, _, hint = sentence.partition(" → ")
        key = ".".join(map(str, written))
        named = place in ("", _flag(key))  # the place names the key already
        return RecipeError(place or key, what if named else f"{key}: {what}", hint)

    def _as_written(self, location: KeyPath) -> KeyPath:
        """Return a validated location without the list and mapping that shorthands stand for."""
        node: Any = self.raw
        written: list[str | int] = []
        for part in location:
            if isinstance(node, str):
                break
            if isinstance(part, int) and not isinstance(node, list):
                continue
            written.append(part)
            if isinstance(node, list):
                node = node[int(part)]
            else:
                node = node.get(part) if isinstance(node, dict) else None
        return tuple(written)


def _step(node: Any, part: str | int, spoken: str, place: str) -> KeyPath:
    """Return how one part of a key is really reached: a list of one stands for its entry."""
    if isinstance(node, dict):
        # Entry 0 of what is written without a list is the thing itself.
        return () if part == 0 else (str(part),)
    if isinstance(part, int) and part < len(node):
        return (part,)
    if isinstance(part, str) and len(node) == 1:
        return (0, part)
    what = f'{spoken}: "{part}" is none of its {len(node)} entries'
    raise RecipeError(place, what, "count from 0, as in guide.explicit.0.weight")


def _opened(node: Any, step: KeyPath, spoken: str, place: str) -> Any:
    """Return what `step` leads to, made a mapping if it is unset or a bare name."""
    for part in step:
        child = node[int(part)] if isinstance(node, list) else node.get(part)
        if child is None:
            child = {}
        elif isinstance(child, str):
            child = {"callable" if CALLABLE.fullmatch(child) else "model": child}
        elif not isinstance(child, (dict, list)):
            raise RecipeError(place, f'{spoken}: "{part}" is {show(child)} and has no keys')
        node[part] = child
        node = child
    return node


def _refuse_secrets(raw: Any, places: Mapping[KeyPath, str], source: str) -> None:
    """Raise if a key or value looks like a token; it is never repeated in the message."""

    def walk(node: Any, path: KeyPath, place: str) -> Iterator[tuple[KeyPath, str]]:
        place = places.get(path, place)
        if isinstance(node, dict):
            for key, child in node.items():
                if SECRET.search(key):
                    yield (*path, "(key)"), place
                else:
                    yield from walk(child, (*path, key), place)
        elif isinstance(node, list):
            for index, child in enumerate(node):
                yield from walk(child, (*path, index), place)
        elif isinstance(node, str) and SECRET.search(node):
            yield path, place

    problems = [
        RecipeError(
            place,
            f"{'.'.join(map(str, path))}: looks like an access token",
            "keep it out of recipes: set HF_TOKEN in the environment",
        )
        for path, place in walk(raw, (), source)
    ]
    if problems:
        raise RecipeError.gather(source, problems)


def to_yaml(recipe: BaseModel) -> str:
    """Return the resolved recipe as YAML, which `load` reads back as an equal recipe.

    Every key is there, save those that are unset and unset by default.
    """
    return syntax.dump(_plain(recipe))


def to_guide(keys: Mapping[str, Any]) -> str:
    """Return a guide's keys as YAML, having checked that they are one."""
    Guide.model_validate(keys)
    return syntax.dump(dict(keys))


def run_id(recipe: BaseModel) -> str:
    """Return eight hex digits that name everything a result depends on.

    `engine.device`, `engine.rows` and `engine.speculate` are left out: they say where and how fast
    to decode, so a run may be resumed on another machine. So is what a recipe itself calls incidental.
    """
    plain = _plain(recipe)
    engine = ("engine.device", "engine.rows", "engine.speculate")
    incidental = (*engine, *getattr(recipe, "incidental", ()))
    for dotted in incidental:
        *sections, key = dotted.split(".")
        node: Any = plain
        for section in sections:
            node = node.get(section) or {}
        node.pop(key, None)
    return hashlib.sha256(syntax.dump(plain).encode()).hexdigest()[:8]


def _plain(section: BaseModel) -> dict[str, Any]:
    """Return a section as mappings, lists and scalars, in the order of its fields."""

    def plain(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return _plain(value)
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple) else value

    return {
        name: plain(getattr(section, name))
        for name, field in type(section).model_fields.items()
        if getattr(section, name) is not None or field.default is not None
    }
