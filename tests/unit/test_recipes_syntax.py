"""YAML 1.2's scalars, repeated keys, and errors with their place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ivgcli.errors import RecipeError
from ivgcli.recipes.syntax import dump, parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        ("-.inf", -math.inf),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+3", 3),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("0b1", "0b1"),
        ("=", "="),
        ("1e5x", "1e5x"),
        ("[no, 1e-5, '']", ["no", 1e-5, ""]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse(text, "x").value
    assert parsed == value
    assert type(parsed) is type(value)


def test_not_a_number_is_read_as_one() -> None:
    assert math.isnan(parse(".nan", "x").value)


@pytest.mark.parametrize(
    "value",
    [
        "1e-5",
        "yes",
        "null",
        "010",
        "0o7",
        "~",
        "",
        "1.0",
        ".5",
        "a: b",
        "=",
        "<<",
        "a\x85b",
        "a\u2028",
        " a\n b\n\n",
        "\t\r\n",
        "\ufeffa",
        "\x07",
    ],
)
def test_a_dumped_text_is_read_back_as_text(value: str) -> None:
    assert parse(dump({"key": value}), "x").value == {"key": value}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", 'f.yaml:3: key "a" is there twice → keep one'),
        ("a: {b: 1, b: 1}", 'f.yaml:1: key "b" is there twice → keep one'),
        ("a: 1\n1: 2", "f.yaml:2: expected a word as key, got 1"),
        ("a: [1", "f.yaml:1:6: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "f.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "f.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1: not YAML: but found another document"),
        ("a: *b", "f.yaml:1:4: not YAML: found undefined alias 'b'"),
        ("a\0: 1", "f.yaml:1: character 0x0 does not belong in YAML"),
        ("x: 1\na: !!int x", "f.yaml:2: not YAML: invalid literal for int() with base 10: 'x'"),
        ("&a [*a]", "f.yaml: nested too deep"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value) == sentence


def test_code_in_yaml_is_refused() -> None:
    tag = "tag:yaml.org,2002:python/object/apply:os.getcwd"
    with pytest.raises(RecipeError) as caught:
        parse("a: !!python/object/apply:os.getcwd []", "x")
    assert str(caught.value) == f"x:1: not YAML: {tag} is neither a mapping nor a list"
    with pytest.raises(RecipeError, match=r"^x:1:4: not YAML: could not determine a constructor"):
        parse("a: !!python/object/apply:os.getcwd ''", "x")


def test_aliases_that_multiply_each_other_end_early() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(RecipeError, match=r"^x: more than 10000 keys$"):
        parse(bomb, "x")


def test_places_follow_keys_and_entries() -> None:
    places = parse("a:\n  - b: 1\n  - c\nd: 2", "f").places
    assert places == {
        ("a",): "f:1",
        ("a", 0): "f:2",
        ("a", 0, "b"): "f:2",
        ("a", 1): "f:3",
        ("d",): "f:4",
    }


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such file$"):
        read(tmp_path / "nowhere.yaml")
    with pytest.raises(RecipeError, match=r": is a directory$"):
        read(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9")
    with pytest.raises(RecipeError, match=r": byte 3 is not UTF-8 → save it as UTF-8$"):
        read(latin)
    latin.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read(latin).value == {"a": 1}
