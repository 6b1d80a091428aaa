"""A base behind a server, against the same network loaded here."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("openai")

from ivgcli.errors import ModelError
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.served import ServedPrompts
from ivgcli.recipes import BonRecipe, GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.workflows.best_of_n import best_of_n
from ivgcli.workflows.generate import Summary, generate
from tests.models import PROMPTS, folder, pair, tokenizer
from tests.served import IDS, OPTIONS, TinyServer
from tests.unit.judging.stub import Stub

GUIDE = {"implicit": pair("llama-tuned", "llama-reference")}
SCALAR = {"explicit": folder("scalar")}
VOWELS = {"explicit": {"callable": "tests.toys:vowels"}}
SHORT = {"max_new_tokens": 14, "temperature": 0.0}
SHAPE = {"beam_width": 2, "successors": 2, "chunk_length": 4}


class Kept:
    """A writer that keeps records in memory."""

    def __init__(self) -> None:
        self.done: set[tuple[str, int]] = set()
        self.records: dict[tuple[str, int], dict[str, Any]] = {}

    def write(self, record: dict[str, Any]) -> None:
        key = (record["id"], record["sample"])
        assert key not in self.records, "a response is written twice"
        self.records[key] = record


def ran(
    base: Any, prompts: Sequence[str] = PROMPTS, **keys: Any
) -> tuple[dict[tuple[str, int], dict[str, Any]], Summary]:
    """The records of a run by (id, sample), and its summary."""
    kept = Kept()
    given = [Prompt(f"p{number}", text, None, {}) for number, text in enumerate(prompts)]
    if "by" in keys:
        recipe: Any = BonRecipe.model_validate({"base": base, **keys})
        return kept.records, best_of_n(recipe, given, kept)  # type: ignore[arg-type]
    recipe = GenerateRecipe.model_validate({"base": base, **keys})
    return kept.records, generate(recipe, given, kept)  # type: ignore[arg-type]


def served(stub: Stub, by: str | None = "llama", **rest: Any) -> dict[str, Any]:
    """A base on `stub`, with the tokenizer of a folder."""
    named = {} if by is None else {"tokenizer": folder(by)}
    return {"model": f"openai:{stub.address}#tiny", **named, **rest}


CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "base, several samples": {"sampling": {**SHORT, "samples": 2}},
    "base, stop strings": {"sampling": {**SHORT, "max_new_tokens": 30, "stop": ["a", "th"]}},
    "bon": {"by": "explicit", "guide": SCALAR, "best_of": 3},
    "cbs-i": {"mode": "cbs-i", "guide": GUIDE, "chunk": SHAPE},
    "cbs-e": {"mode": "cbs-e", "guide": SCALAR, "chunk": SHAPE},
    "cbs-e, token-Q": {"mode": "cbs-e", "guide": {"explicit": folder("token-q")}, "chunk": SHAPE},
    "cbs-e, by text": {"mode": "cbs-e", "guide": VOWELS, "chunk": SHAPE},
    "cbs-i, other vocabulary": {
        "mode": "cbs-i",
        "guide": {"implicit": pair("llama-other", "llama-other-reference")},
        "chunk": SHAPE,
    },
    "eft-i": {"mode": "eft-i", "guide": GUIDE, "token": {"candidates": 300}},
    "eft-i, warmed": {
        "mode": "eft-i",
        "guide": GUIDE,
        "token": {"candidates": 300, "weight": 0.5},
        "sampling": {**SHORT, "temperature": 1.0, "top_p": 0.9, "samples": 2},
    },
    "eft-e": {"mode": "eft-e", "guide": SCALAR, "token": {"candidates": 20, "outside": "drop"}},
    "eft-e, by text": {
        "mode": "eft-e",
        "guide": VOWELS,
        "token": {"candidates": 5, "weight": 9.0, "outside": "drop"},
    },
    "eft-i, every third": {
        "mode": "eft-i",
        "guide": GUIDE,
        "token": {"candidates": 300, "every": 3},
    },
    "eft-i+cbs-i": {
        "mode": "eft-i+cbs-i",
        "guide": GUIDE,
        "chunk": SHAPE,
        "token": {"candidates": 300},
        "sampling": {**SHORT, "temperature": 1.0},
    },
    "ivg": {
        "mode": "ivg",
        "guide": {**GUIDE, **SCALAR},
        "chunk": SHAPE,
        "token": {"candidates": 300},
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_served_base_gives_the_responses_of_the_same_network_loaded_here(
    case: dict[str, Any],
) -> None:
    # Greedy, or drawn here from all that the server tells: either way nothing is left to its dice.
    keys = {"sampling": SHORT, **case}
    with Stub(complete=TinyServer()) as stub:
        found, summary = ran(served(stub), **keys)
    expected, _ = ran(folder("llama"), **keys)
    assert not summary.failures
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        for name in ("response", "tokens", "finish", "mode", "guide"):
            assert found[key][name] == record[name]
        # Both are float32, summed in other orders.
        for name in ("value", "base_logprob", "kl"):
            wanted = record[name]
            assert found[key][name] == (wanted and pytest.approx(wanted, rel=1e-4, abs=2e-4))
        assert found[key]["base"] == f"openai:{stub.address}#tiny"


def test_top_log_probabilities_by_their_strings_guide_where_a_string_is_one_token() -> None:
    # Over ASCII every token has a string of its own.
    keys = {"mode": "eft-e", "guide": VOWELS, "sampling": SHORT}
    keys["token"] = {"candidates": 8, "weight": 9.0, "outside": "drop"}
    server = TinyServer("llama-ascii", "ascii", strings=True)
    with Stub(complete=server) as stub:
        found, _ = ran(served(stub, "llama-ascii"), PROMPTS[:2], **keys)
    expected, _ = ran(folder("llama-ascii"), PROMPTS[:2], **keys)
    assert [found[key]["response"] for key in expected] == [
        record["response"] for record in expected.values()
    ]


def test_without_ids_chunks_are_followed_as_text() -> None:
    server = TinyServer("llama-ascii", "ascii", ids=False)
    keys = {"mode": "cbs-i", "guide": GUIDE, "chunk": SHAPE, "sampling": SHORT}
    with Stub(complete=server) as stub:
        found, summary = ran(served(stub, "llama-ascii"), PROMPTS[:3], **keys)
    assert summary.notes == (
        f"openai:{stub.address}#tiny takes or tells no token ids: "
        "it is shown text, and cuts that into tokens of its own",
    )
    reader = tokenizer("ascii")
    for number, prompt in enumerate(PROMPTS[:3]):
        text, left, finish = "", 14, "length"
        while left and finish == "length":
            body = {"prompt": prompt + text, "max_tokens": min(4, left), "temperature": 0}
            [choice] = server({**body, "logprobs": 1})["choices"]  # type: ignore[index]
            text, finish = text + choice["text"], choice["finish_reason"]
            left -= len(choice["logprobs"]["tokens"])
        record = found[f"p{number}", 0]
        assert record["response"] == text
        assert record["finish"] == ("eos" if finish == "stop" else "length")
        assert record["tokens"] == 14 - left
        assert record["usage"]["requests"] == -(-(14 - left) // 4)
    assert reader.eos_token_id is not None


def test_without_a_tokenizer_the_server_is_shown_the_text_itself() -> None:
    with Stub(complete=TinyServer()) as stub:
        found, _ = ran(served(stub, None, template="the {prompt}"), ["film"], sampling=SHORT)
        shown = [asked.body["prompt"] for asked in stub.requests]
    expected, _ = ran(folder("llama"), ["the film"], sampling=SHORT)
    assert shown == ["the film"] * 4  # tried thrice, then asked
    assert found["p0", 0]["response"] == expected["p0", 0]["response"]


def test_conversations_without_a_tokenizer_go_to_the_chat_endpoint() -> None:
    kept = Kept()
    turns = ({"role": "user", "content": "the film"},)
    with Stub(complete=TinyServer()) as stub:
        recipe = GenerateRecipe.model_validate(
            {"base": served(stub, None, system="a"), "sampling": SHORT}
        )
        generate(recipe, [Prompt("c", None, turns, {})], kept)  # type: ignore[arg-type]
    whole = "<|system|>a<|end|><|user|>the film<|end|><|assistant|>"
    expected, _ = ran(folder("llama"), [whole], sampling=SHORT)
    assert kept.records["c", 0]["response"] == expected["p0", 0]["response"]
    assert stub.requests[-1].body["messages"][0] == {"role": "system", "content": "a"}


def test_a_search_cannot_continue_a_conversation_that_only_the_server_can_write_down() -> None:
    kept = Kept()
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    with Stub(complete=TinyServer()) as stub:
        keys = {"mode": "cbs-e", "guide": VOWELS, "base": served(stub, None)}
        recipe = GenerateRecipe.model_validate(keys)
        generate(recipe, [Prompt("c", None, turns, {})], kept)  # type: ignore[arg-type]
    assert kept.records["c", 0]["error"].endswith(
        "a conversation, and no tokenizer that says how the served base is told it"
        " → name one: base.tokenizer"
    )


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    keys = {"mode": "cbs-e", "guide": VOWELS, "chunk": SHAPE, "sampling": {"max_new_tokens": 9}}
    with Stub(complete=TinyServer()) as stub:
        one, two, other = (ran(served(stub), seed=seed, **keys)[0] for seed in (1, 1, 2))
        count = {asked.body.get("n", 1) for asked in stub.requests}
    assert [each["response"] for each in one.values()] == [two[key]["response"] for key in one]
    assert [each["response"] for each in one.values()] != [other[key]["response"] for key in one]
    # W·K from the prompt, then K from each of W hypotheses (W·K where both are the same text).
    assert count <= {4, 2, 1}


def test_a_server_that_gives_one_response_to_a_request_is_asked_for_each() -> None:
    keys = {"mode": "cbs-e", "guide": VOWELS, "sampling": {"max_new_tokens": 4}}
    with Stub(complete=TinyServer(count=False)) as stub:
        found, summary = ran(served(stub), PROMPTS[:2], chunk={**SHAPE, "chunk_length": 4}, **keys)
    name = f"openai:{stub.address}#tiny"
    assert summary.notes == (
        f"{name} gives one response to a request, whatever n says: each is asked",
    )
    assert {record["usage"]["requests"] for record in found.values()} == {4}
    assert [asked.body.get("n", 1) for asked in stub.requests[3:]] == [1] * 8


def test_a_server_whose_draws_do_not_follow_the_seed_is_said_to_be_one() -> None:
    with Stub(complete=TinyServer(seeds=False)) as stub:
        _, summary = ran(served(stub), PROMPTS[:1], sampling={"max_new_tokens": 4})
    name = f"openai:{stub.address}#tiny"
    assert summary.notes == (
        f"{name} does not repeat itself by seed: another run draws other responses",
    )


def test_a_server_that_does_not_draw_is_said_to_be_one() -> None:
    greedy = TinyServer()

    def complete(body: Mapping[str, Any]) -> Mapping[str, Any] | str:
        return greedy({**body, "temperature": 0})

    with Stub(complete=complete) as stub:
        _, summary = ran(served(stub), PROMPTS[:1], sampling={"max_new_tokens": 4})
    name = f"openai:{stub.address}#tiny"
    assert summary.notes == (f"{name} gave the same response thrice: it may not heed temperature",)


@pytest.mark.parametrize(("vocabulary", "left"), [("metaspace", "hi"), ("bytes", "<s>hi")])
def test_a_first_token_that_the_server_adds_itself_is_not_written_twice(
    vocabulary: str, left: str
) -> None:
    reader = copy.deepcopy(tokenizer(vocabulary))
    reader.chat_template = "<s>{{ messages[0]['content'] }}"
    # The byte tokenizer puts nothing in front, so what a template writes there is all there is.
    if vocabulary == "bytes":
        reader.add_special_tokens({"bos_token": "<s>"})
    assert ServedPrompts(PromptFormat(reader)).text("hi", None) == left


def test_options_that_a_server_refuses_by_name_are_left_out() -> None:
    # As `transformers serve`: no ids, no log-probabilities, one response, and only OpenAI's options.
    knows = {"model", "prompt", "temperature", "top_p", "max_tokens", "stop", "logprobs"}
    server = TinyServer("llama-ascii", "ascii", False, False, False, False, knows=knows)
    with Stub(complete=server) as stub:
        found, summary = ran(served(stub, None), PROMPTS[:2], sampling={"max_new_tokens": 6})
    name = f"openai:{stub.address}#tiny"
    assert summary.notes == (
        f"{name} knows no seed: another run draws other responses",
        f"{name} gives one response to a request, whatever n says: each is asked",
        f"{name} gives no log-probabilities: base_logprob is null",
    )
    assert [record["base_logprob"] for record in found.values()] == [None, None]
    assert [record["tokens"] <= 6 for record in found.values()] == [True, True]
    assert set(stub.requests[-1].body) <= knows


def test_fewer_top_log_probabilities_than_candidates_are_said_and_none_are_refused() -> None:
    keys = {"mode": "eft-i", "guide": GUIDE, "sampling": SHORT, "token": {"candidates": 50}}
    with Stub(complete=TinyServer(most=20)) as stub:
        found, summary = ran(served(stub), PROMPTS[:1], **keys)
    assert summary.notes[-1].endswith("tells 20 top log-probabilities: so many candidates")
    token = {"candidates": 20, "outside": "drop"}
    expected, _ = ran(folder("llama"), PROMPTS[:1], **{**keys, "token": token})
    assert found["p0", 0]["response"] == expected["p0", 0]["response"]
    with (
        Stub(complete=TinyServer(logprobs=False)) as stub,
        pytest.raises(ModelError, match="tells no top log-probabilities, and eft-i tilts them"),
    ):
        ran(served(stub), PROMPTS[:1], **keys)


def test_top_k_is_refused_with_the_server_that_does_not_know_it() -> None:
    with (
        Stub(complete=TinyServer(knows=OPTIONS - {"top_k"})) as stub,
        pytest.raises(ModelError, match=r"sampling.top_k: the server knows no top_k"),
    ):
        ran(served(stub), sampling={"top_k": 5})


def test_a_stop_string_that_two_chunks_share_ends_the_response() -> None:
    plain, _ = ran(folder("llama-ascii"), PROMPTS[2:3], sampling=SHORT)
    text = plain["p0", 0]["response"]
    keys = {"mode": "cbs-e", "guide": VOWELS, "chunk": {**SHAPE, "chunk_length": 1}}
    stop = text[3:8]
    for ids in (True, False):
        with Stub(complete=TinyServer("llama-ascii", "ascii", ids)) as stub:
            by = "llama-ascii" if ids else None
            sampling = {**SHORT, "stop": stop}
            found, _ = ran(served(stub, by), PROMPTS[2:3], sampling=sampling, **keys)
        if ids:
            assert found["p0", 0]["response"] == text[: text.index(stop)]
            assert found["p0", 0]["finish"] == "stop"
        assert stop not in found["p0", 0]["response"]


FAULTS = ("429", "500", "reset")


def test_a_server_that_fails_one_request_in_five_loses_no_response_and_repeats_none() -> None:
    rolls = random.Random(5)

    def fault(number: int, body: Mapping[str, Any]) -> str | None:
        return rolls.choice(FAULTS) if rolls.random() < 0.2 else None

    prompts = [f"{PROMPTS[number % 3]} {number}" for number in range(300)]
    keys = {"sampling": {**SHORT, "max_new_tokens": 3}}
    with Stub(complete=TinyServer(), fault=fault) as stub:
        found, summary = ran(served(stub, server={"in_flight": 8}), prompts, **keys)
    assert not summary.failures
    assert len(found) == 300
    assert sum(asked.fault is not None for asked in stub.requests) > 40
    assert 1 < stub.most_in_flight <= 8
    expected, _ = ran(folder("llama"), prompts, **keys)
    assert all(found[key]["response"] == each["response"] for key, each in expected.items())


def test_a_request_that_is_refused_fails_its_record_alone() -> None:
    tiny = TinyServer()

    def complete(body: Mapping[str, Any]) -> Mapping[str, Any] | str:
        long = len(body["prompt"]) > 15
        return "This model's maximum context length is 15 tokens" if long else tiny(body)

    with Stub(complete=complete) as stub:
        found, summary = ran(served(stub), PROMPTS, sampling={"max_new_tokens": 2})
    [(identity, sentence)] = summary.failures
    assert identity == "p3"
    assert "refused the question" in sentence
    assert "maximum context length is 15 tokens" in sentence
    assert [record["response"] is None for record in found.values()].count(True) == 1


def test_a_server_that_dies_ends_the_run() -> None:
    dead = lambda number, body: "500" if number > 20 else None  # noqa: E731
    with (
        Stub(complete=TinyServer(), fault=dead) as stub,
        pytest.raises(ModelError, match="answered none of the latest 16 requests"),
    ):
        prompts = [f"a {number}" for number in range(150)]
        base = served(stub, server={"attempts": 1})
        ran(base, prompts, sampling={"max_new_tokens": 2})


def test_what_ids_are_told_by_is_asked_for_and_what_vllm_would_take_from_the_model_is_said() -> (
    None
):
    with Stub(complete=TinyServer()) as stub:
        ran(served(stub), PROMPTS[:1], sampling=SHORT)
    body = dict(stub.requests[-1].body)
    assert set(body) >= IDS
    assert (body["top_k"], body["repetition_penalty"], body["top_p"]) == (-1, 1.0, 1.0)
