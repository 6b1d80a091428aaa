"""Best-of-N is chunk search with one beam and whole responses as chunks."""

from __future__ import annotations

from typing import Any

import pytest

from ivgcli.recipes import BonRecipe, GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.workflows.best_of_n import best_of_n
from ivgcli.workflows.generate import generate
from tests import oracles
from tests.models import PROMPTS, folder, pair, plain, tokenizer
from tests.toys import ListWriter, vowels

N = 5
SAMPLING = {"max_new_tokens": 14, "samples": 2}
GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
BY_TEXT = {
    "implicit": pair("llama-other", "llama-other-reference"),
    "explicit": folder("scalar-other"),
}
CALLABLE = {"explicit": "tests.toys:vowels"}


def prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(f"p{number}", text, None) for number, text in enumerate(texts)]


def drawn(**given: Any) -> ListWriter:
    writer = ListWriter(given.pop("done", ()))
    plan = BonRecipe.model_validate(
        {"base": folder("llama"), "best_of": N, "sampling": SAMPLING, **given}
    )
    best_of_n(plan, prompts(PROMPTS), writer, given.pop("trace", None))
    return writer


@pytest.mark.parametrize(
    ("bon", "mode"),
    [
        ({"by": "implicit", "guide": GUIDE}, "cbs-i"),
        ({"by": "explicit", "guide": GUIDE}, "cbs-e"),
        ({"by": "implicit", "guide": BY_TEXT}, "cbs-i"),
        ({"by": "explicit", "guide": BY_TEXT}, "cbs-e"),
        ({"by": "explicit", "guide": CALLABLE}, "cbs-e"),
    ],
    ids=["implicit", "explicit", "implicit by text", "explicit by text", "callable"],
)
@pytest.mark.parametrize("rows", [5, 23])
def test_one_beam_of_n_whole_responses_is_best_of_n_with_the_same_draws(bon, mode, rows):
    chunk = {"beam_width": 1, "successors": N, "chunk_length": None}
    plan = {
        "base": folder("llama"),
        "mode": mode,
        "guide": bon["guide"],
        "chunk": chunk,
        "sampling": SAMPLING,
    }
    searched = ListWriter()
    generate(
        GenerateRecipe.model_validate({**plan, "engine": {"rows": rows}}),
        prompts(PROMPTS),
        searched,
    )
    kept = drawn(**bon, engine={"rows": rows}).by_key()
    assert kept.keys() == searched.by_key().keys()
    for key, record in searched.by_key().items():
        for name in ("response", "tokens", "finish"):
            assert kept[key][name] == record[name]
        for name in ("value", "base_logprob", "kl"):
            assert kept[key][name] == pytest.approx(record[name], abs=1e-4)


def test_the_kept_response_is_the_best_of_n_naive_samples():
    reward = {"callable": "tests.toys:vowels"}
    kept = drawn(by="reward", reward=reward, sampling={"max_new_tokens": 14}).by_key()
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer("bytes")(prompt)["input_ids"]
        policy = oracles.policy(plain("llama"), ids, 14)
        texts = []
        for candidate in range(N):
            key = oracles.stream_key(0, f"p{number}", 0, candidate)
            tokens = policy.extend(oracles.Hypothesis(), 14, key).tokens
            texts.append(tokenizer("bytes").decode(list(tokens), skip_special_tokens=True))
        rewards = vowels([""] * N, texts)
        record = kept[f"p{number}", 0]
        assert (record["response"], record["value"]) == (
            texts[rewards.index(max(rewards))],
            max(rewards),
        )


def test_best_of_one_is_plain_sampling():
    base = ListWriter()
    generate(
        GenerateRecipe.model_validate({"base": folder("llama"), "sampling": SAMPLING}),
        prompts(PROMPTS),
        base,
    )
    kept = drawn(by="implicit", guide=GUIDE, best_of=1).by_key()
    for key, record in base.by_key().items():
        assert kept[key]["response"] == record["response"]


def test_a_constant_reward_keeps_the_first_drawn():
    kept = drawn(by="reward", reward={"callable": "tests.toys:constant"}).by_key()
    base = ListWriter()
    generate(
        GenerateRecipe.model_validate({"base": folder("llama"), "sampling": SAMPLING}),
        prompts(PROMPTS),
        base,
    )
    assert {key: record["response"] for key, record in kept.items()} == {
        key: record["response"] for key, record in base.by_key().items()
    }


def test_finished_records_are_not_drawn_again():
    kept = drawn(by="implicit", guide=GUIDE, done=[("p0", 0), ("p2", 1)])
    keys = set(kept.by_key())
    assert len(keys) == 2 * len(PROMPTS) - 2
    assert not keys & {("p0", 0), ("p2", 1)}


def test_a_record_whose_candidates_all_fail_says_why():
    kept = drawn(by="reward", reward={"callable": "tests.toys:undefined_for_the_second"}).by_key()
    failed = kept["p1", 0]
    assert failed["response"] is None
    assert failed["error"].startswith(
        "tests.toys:undefined_for_the_second: gave a number that is not finite"
    )
    assert kept["p0", 0].get("error") is None
