"""YAML as recipes mean it: text to plain values, with the place of every key, and back.

The parser's defaults are those of YAML 1.1, where `1e-5` is a string, `no` is false, `010` is 8,
`12:30` is 750 and the last of two equal keys wins. Here the core schema of YAML 1.2 holds and
a repeated key is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ivgcli.errors import RecipeError

KeyPath = tuple[str | int, ...]

MOST_KEYS = 10_000
"""More keys than any recipe has; aliases that multiply each other end here."""

CORE_SCHEMA: dict[str, tuple[str, str]] = {
    "null": (r"null|Null|NULL|~|", "nN~\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Each scalar type of YAML 1.2: its pattern, and the characters it starts with (\\0: empty)."""


UNUSUAL_BREAK = re.compile("[\\x85\\u2028\\u2029]")
"""Line breaks of Unicode that YAML folds."""

COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Document(NamedTuple):
    """A parsed text."""

    value: Any
    """Mappings, lists, strings, numbers, booleans and None."""
    places: dict[KeyPath, str]
    """`file:line` of every key and list entry."""


class RecipeLoader(yaml.SafeLoader):
    """The safe loader with the scalar types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as the parser declares it


class RecipeDumper(yaml.SafeDumper):
    """The safe dumper, quoting every string that YAML 1.1 or 1.2 would read as something else."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012
        key: list(pairs) for key, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _kind, (_pattern, _first) in CORE_SCHEMA.items():
    for _class in (RecipeLoader, RecipeDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}",
            re.compile(rf"(?:{_pattern})\Z"),
            [character.strip("\0") for character in _first],
        )


def _construct_int(loader: RecipeLoader, node: yaml.ScalarNode) -> int:
    """Read a whole number; a leading zero is decimal, as in YAML 1.2."""
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _represent_text(dumper: RecipeDumper, text: str) -> yaml.ScalarNode:
    """Write texts of several lines as a block, for human readers."""
    style = "|" if "\n" in text else None
    if UNUSUAL_BREAK.search(text):
        style = '"'  # the only style in which the dumper escapes them; others turn them into spaces
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
RecipeDumper.add_representer(str, _represent_text)


def read(path: Path) -> Document:
    """Parse a YAML file.

    Raises:
        RecipeError: the file cannot be read, or is not YAML (with its line and column).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(str(path), "no such file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            str(path), f"byte {error.start} is not UTF-8", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise RecipeError(str(path), (error.strerror or str(error)).lower()) from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Document:
    """Parse YAML text; `source` names it in places and errors.

    Raises:
        RecipeError: the text is not YAML, repeats a key or uses a type that recipes do not have.
    """
    try:
        loader = RecipeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"character {error.character:#x} does not belong in YAML"
        raise RecipeError(f"{source}:{line}", what) from None
    try:
        node = loader.get_single_node()
        places: dict[KeyPath, str] = {}
        return Document(_plain(loader, node, (), places, source) if node else None, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise RecipeError(place, f"not YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise RecipeError(source, "nested too deep") from None
    finally:
        loader.dispose()


def _plain(
    loader: RecipeLoader,
    node: yaml.Node,
    path: KeyPath,
    places: dict[KeyPath, str],
    source: str,
) -> Any:
    """Return a node as plain values, noting the place of each key in `places`."""
    if len(places) > MOST_KEYS:
        raise RecipeError(source, f"more than {MOST_KEYS} keys")
    here: KeyPath
    if not isinstance(node, yaml.ScalarNode) and node.tag not in COLLECTIONS:
        place = f"{source}:{node.start_mark.line + 1}"
        raise RecipeError(place, f"not YAML: {node.tag} is neither a mapping nor a list")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = f"{source}:{key_node.start_mark.line + 1}"
            key = _scalar(loader, key_node, source)
            if not isinstance(key, str):
                raise RecipeError(place, f"expected a word as key, got {key_node.value}")
            if key in mapping:
                raise RecipeError(place, f'key "{key}" is there twice', "keep one")
            here = (*path, key)
            places[here] = place
            mapping[key] = _plain(loader, value_node, here, places, source)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        entries: list[Any] = []
        for index, entry in enumerate(node.value):
            here = (*path, index)
            places[here] = f"{source}:{entry.start_mark.line + 1}"
            entries.append(_plain(loader, entry, here, places, source))
        return entries
    return _scalar(loader, node, source)


def _scalar(loader: RecipeLoader, node: yaml.Node, source: str) -> Any:
    """Return the value of a scalar node."""
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:
        raise RecipeError(f"{source}:{node.start_mark.line + 1}", f"not YAML: {error}") from None


def dump(value: Any) -> str:
    """Return plain values as YAML that `parse` reads back unchanged, keys in the given order."""
    return str(
        yaml.dump(value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)
    )
