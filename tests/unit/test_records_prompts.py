"""Reading prompts: every shape users have, and a sentence for everything else."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from ivgcli.errors import RecordError
from ivgcli.records import Prompt, read_prompts


def written(folder: Path, *lines: str | bytes, name: str = "prompts.jsonl") -> str:
    """Write lines to a file and return its name."""
    raw = [line.encode() if isinstance(line, str) else line for line in lines]
    path = folder / name
    path.write_bytes(b"\n".join(raw))
    return str(path)


GOOD = '{"prompt": "Once"}'
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Once"}, Prompt("1", "Once", None, {})),
        ({"id": 7, "prompt": "Once", "genre": "x"}, Prompt("7", "Once", None, {"genre": "x"})),
        ({"id": None, "prompt": "Once"}, Prompt("1", "Once", None, {})),
        ({"prompt": [USER]}, Prompt("1", None, (USER,), {})),
        ({"id": "a", "messages": [USER]}, Prompt("a", None, (USER,), {})),
        (
            {"instruction": "Why?", "dataset": "helpful_base"},
            Prompt("1", "Why?", None, {"dataset": "helpful_base"}),
        ),
        # The space before the differing word belongs to the word, as in TRL.
        (
            {"chosen": "Q: 1+1? A: two", "rejected": "Q: 1+1? A: five"},
            Prompt(
                "1", "Q: 1+1? A:", None, {"chosen": "Q: 1+1? A: two", "rejected": "Q: 1+1? A: five"}
            ),
        ),
        # Beside a prompt of its own, a conversation passes through.
        (
            {"prompt": "Hi", "messages": [USER]},
            Prompt("1", "Hi", None, {"messages": [USER]}),
        ),
        ({"prompt": "{braces} %s \\n"}, Prompt("1", "{braces} %s \\n", None, {})),
    ],
)
def test_every_shape_is_read_as_its_prompt(tmp_path: Path, row: dict, prompt: Prompt) -> None:
    assert read_prompts(written(tmp_path, json.dumps(row))) == [prompt]


def test_pairs_of_conversations_share_their_first_messages(tmp_path: Path) -> None:
    pair = {
        "chosen": [USER, {"role": "assistant", "content": "a"}],
        "rejected": [USER, {"role": "assistant", "content": "b"}],
    }
    [prompt] = read_prompts(written(tmp_path, json.dumps(pair)))
    assert prompt.messages == (USER,)
    assert prompt.extra == pair


def test_ids_default_to_line_numbers_counting_blank_lines(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), "", GOOD + "\r", "")
    assert [prompt.id for prompt in read_prompts(file)] == ["1", "3"]


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{index}"} for index in range(3)]
    array = read_prompts(written(tmp_path, json.dumps(rows, indent=1), name="array.json"))
    assert array == read_prompts(written(tmp_path, *map(json.dumps, rows)))


def test_limit_reads_no_further_than_it_says(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, GOOD, "torn")
    assert [prompt.id for prompt in read_prompts(file, limit=2)] == ["1", "2"]


def test_stdin_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert read_prompts("-") == [Prompt("1", "Once", None, {})]


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ('{"prompt": "a"', ":2: not JSON: Expecting ',' delimiter at column 15"),
        ('{"prompt": "a\0"}', ":2: has a NUL byte → the file is damaged, or not text"),
        (b'{"prompt": "\xe9"}', ":2: byte 13 is not UTF-8 → save the file as UTF-8"),
        ("[1]", ":2: expected an object, got a list"),
        ("3", ":2: expected an object, got a number"),
        ("null", ":2: expected an object, got null"),
        (
            '{"id": 1, "text": "a"}',
            ':2: no field "prompt" (found id, text) → rename the field that holds it',
        ),
        ("{}", ':2: no field "prompt" (found nothing) → rename the field that holds it'),
        ('{"prompt": " "}', ":2: the prompt is empty"),
        ('{"prompt": []}', ":2: the prompt is empty"),
        ('{"prompt": 3}', ':2: "prompt" is neither a text nor a list of messages'),
        ('{"messages": "a"}', ':2: "messages" is neither a text nor a list of messages'),
        (
            '{"messages": [{"role": "user"}]}',
            ':2: message 1 of "messages" lacks a role or content that is text',
        ),
        ('{"messages": [3]}', ':2: message 1 of "messages" lacks a role or content that is text'),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            ":2: the last message is the assistant's → end with the one to be answered",
        ),
        ('{"id": 1.5, "prompt": "a"}', ":2: the id is neither a text nor a whole number"),
        ('{"id": true, "prompt": "a"}', ":2: the id is neither a text nor a whole number"),
        ('{"id": "", "prompt": "a"}', ":2: the id is neither a text nor a whole number"),
        (
            '{"chosen": "a", "rejected": "b"}',
            ':2: "chosen" and "rejected" share no prompt → add a field "prompt"',
        ),
        (
            '{"chosen": "a", "rejected": [1]}',
            ':2: "chosen" and "rejected" are not both texts or both lists of messages',
        ),
        (
            '{"prompt": "a", "x": NaN}',
            ":2: holds NaN, Infinity or half a surrogate pair, which JSON does not have",
        ),
        (
            '{"prompt": "a", "x": 1e999}',
            ":2: holds NaN, Infinity or half a surrogate pair, which JSON does not have",
        ),
        (
            '{"prompt": "\\ud800"}',
            ":2: holds NaN, Infinity or half a surrogate pair, which JSON does not have",
        ),
        ("[" * 100_000, ":2: not JSON: nested too deep"),
    ],
)
def test_a_bad_line_is_told_with_its_number(
    tmp_path: Path, bad: str | bytes, sentence: str
) -> None:
    file = written(tmp_path, GOOD, bad, GOOD)
    with pytest.raises(RecordError) as caught:
        read_prompts(file)
    assert str(caught.value) == file + sentence


def test_a_repeated_id_names_both_lines(tmp_path: Path) -> None:
    file = written(tmp_path, '{"id": 2, "prompt": "a"}', GOOD)
    with pytest.raises(RecordError) as caught:
        read_prompts(file)
    expected = f'{file}:2: id "2" is there already, at {file}:1 → give every prompt its own id'
    assert str(caught.value) == expected


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_a_file_without_prompts_says_so(tmp_path: Path, content: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(RecordError) as caught:
        read_prompts(file)
    assert str(caught.value) == f'{file}: no prompts → write one {{"prompt": ...}} a line'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('[{"prompt": "a"}, 3]', ": entry 2: expected an object, got a number"),
        ('[{"prompt": "a"},\n{"x"}]', ":2: not JSON: Expecting ':' delimiter at column 5"),
        ('[{"prompt": "a"}, {"prompt": ""}]', ": entry 2: the prompt is empty"),
        (b'[\n"\xe9"]', ":2: not UTF-8 → save the file as UTF-8"),
    ],
)
def test_a_bad_array_is_told_with_its_place(
    tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    file = written(tmp_path, content, name="array.json")
    with pytest.raises(RecordError) as caught:
        read_prompts(file)
    assert str(caught.value) == file + sentence


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere\.jsonl: no such file$"):
        read_prompts(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(RecordError, match=r": is a directory$"):
        read_prompts(str(tmp_path))


class Dataset(list):
    """Rows, as a data set yields them."""


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Dataset]]:
    """Stand in for the library, with data sets by name and split."""
    from types import SimpleNamespace

    known: dict[str, dict[str, Dataset]] = {}

    def load_dataset(name: str, split: str | None) -> object:
        if name not in known:
            raise FileNotFoundError(f"Couldn't find {name}\nmore lines")
        return known[name] if split is None else known[name][split]

    errors = SimpleNamespace(DatasetsError=RuntimeError)
    library = SimpleNamespace(load_dataset=load_dataset, exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", library)
    return known


def test_data_sets_are_read_by_name_and_split(datasets: dict) -> None:
    datasets["org/one"] = {"eval": Dataset([{"instruction": "Why?"}])}
    datasets["org/two"] = {
        "train": Dataset([{"prompt": "a"}]),
        "test": Dataset([{"prompt": "b"}, {"prompt": ""}]),
    }
    assert read_prompts("hf:org/one") == [Prompt("1", "Why?", None, {})]
    assert read_prompts("hf:org/two:test", limit=1) == [Prompt("1", "b", None, {})]
    with pytest.raises(RecordError) as caught:
        read_prompts("hf:org/two")
    assert str(caught.value) == (
        "hf:org/two: has the splits train, test → name one, for example hf:org/two:train"
    )
    with pytest.raises(RecordError, match=r"^hf:org/two:test: row 2: the prompt is empty$"):
        read_prompts("hf:org/two:test")
    with pytest.raises(RecordError) as caught:
        read_prompts("hf:org/three")
    assert str(caught.value) == (
        "hf:org/three: Couldn't find org/three → check the name, the split and the network"
    )


def test_a_response_keeps_unknown_fields_but_its_own_win() -> None:
    prompt = Prompt("a", "Once", None, {"genre": "drama", "value": "old"})
    record = prompt.respond({"response": " upon", "value": 1.5})
    assert record == {
        "id": "a",
        "prompt": "Once",
        "response": " upon",
        "value": 1.5,
        "genre": "drama",
    }
    assert list(record)[:2] == ["id", "prompt"]
    assert Prompt("b", None, (USER,), {}).respond({})["messages"] == [USER]
