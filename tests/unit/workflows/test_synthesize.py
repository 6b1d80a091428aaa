"""Responses that are those of generate, and rewards that are those of the model itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from ivgcli.errors import ModelError
from ivgcli.models.loading import Networks
from ivgcli.recipes import GenerateRecipe, RewardSpec, SynthesizeRecipe
from ivgcli.records import Pair, Prompt
from ivgcli.values import Prompted
from ivgcli.workflows.generate import generate
from ivgcli.workflows.rewards import Reward
from ivgcli.workflows.synthesize import CHAT_AS_TEXT, draw_and_score, score_again
from tests.models import PROMPTS, folder, pair, plain_value, tokenizer
from tests.toys import ListWriter, vowels

SAMPLING = {"max_new_tokens": 12}
VOWELS = {"callable": "tests.toys:vowels"}


class Gathered:
    """A pair writer that keeps what it is given."""

    def __init__(self, done: Sequence[str] = ()) -> None:
        self.done = set(done)
        self.answers: dict[str, list[Mapping[str, Any]]] = {}

    def write(self, responses: Sequence[Mapping[str, Any]]) -> None:
        assert responses[0]["id"] not in self.answers
        self.answers[responses[0]["id"]] = list(responses)

    def __enter__(self) -> Gathered:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def prompts(texts: Sequence[str] = PROMPTS) -> list[Prompt]:
    return [Prompt(f"p{number}", text, None) for number, text in enumerate(texts)]


def drawn(given: Sequence[Prompt] | None = None, done: Sequence[str] = (), **keys: Any):
    """Return what was written, and the summary."""
    writer = Gathered(done)
    sections = {"base": folder("llama"), "reward": VOWELS, "sampling": SAMPLING, **keys}
    plan = SynthesizeRecipe.model_validate(sections)
    return writer.answers, draw_and_score(plan, given or prompts(), writer)


@pytest.mark.parametrize("mode", ["base", "eft-i", "ivg"])
def test_the_responses_are_those_that_generate_draws(mode):
    guide = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
    how = {"mode": mode, "guide": guide, "chunk": {"chunk_length": 4}, "engine": {"rows": 8}}
    answers, summary = drawn(responses=4, **how)
    writer = ListWriter()
    sampling = {**SAMPLING, "samples": 4}
    plan = {"base": folder("llama"), "sampling": sampling, **how}
    generate(GenerateRecipe.model_validate(plan), prompts(), writer)
    expected = writer.by_key()
    for identity, responses in answers.items():
        assert [each["sample"] for each in responses] == [0, 1, 2, 3]
        for each in responses:
            same = expected[identity, each["sample"]]
            assert (each["response"], each["tokens"]) == (same["response"], same["tokens"])
            assert each["reward"] == vowels([""], [each["response"]])[0]
    assert summary.tokens == sum(each["tokens"] for each in expected.values())
    assert (summary.records, summary.failures) == (len(PROMPTS), [])


def test_answered_prompts_are_not_answered_again():
    answers, summary = drawn(done=["p0", "p3"])
    assert set(answers) == {"p1", "p2", "p4"}
    assert summary.records == 3


def test_a_reward_that_is_no_number_fails_its_prompt_and_no_other():
    reward = {"callable": "tests.toys:undefined_for_the_second"}
    answers, summary = drawn(reward=reward)
    told = "tests.toys:undefined_for_the_second: gave a number that is not finite → check it"
    [(identity, sentence)] = summary.failures
    assert identity == "p1"
    assert sentence.startswith(told)
    assert [each["reward"] for each in answers["p1"]] == [None, None]
    assert all(each["error"] == sentence for each in answers["p1"])
    assert all(each["reward"] == 0 for each in answers["p0"])


def test_a_prompt_that_is_too_long_fails_once_and_not_once_for_each_response():
    answers, summary = drawn(prompts(["a", "the film " * 60]), responses=4)
    [(identity, sentence)] = summary.failures
    assert identity == "p1"
    assert all(each["error"] == sentence for each in answers["p1"])
    assert all(each.get("error") is None for each in answers["p0"])


@pytest.mark.parametrize("label", [0, 1, "LABEL_1", "1"])
def test_the_reward_of_a_classifier_is_the_log_odds_of_its_label(label):
    reward = Reward(
        RewardSpec.model_validate({"model": folder("two-labels"), "label": label}), Networks("cpu")
    )
    texts = [" is a film", " that is all there is to it", "x"]
    found, failure = reward.score(Prompted("p", "the", None, "the"), texts, [True] * 3)
    assert failure is None
    for text, number in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer("bytes")("the" + text)["input_ids"]])
        with torch.inference_mode():
            chances = plain_value("two-labels")(ids).logits[0].softmax(-1).tolist()
        chance = chances[0 if label == 0 else 1]
        assert number == pytest.approx(math.log(chance / (1 - chance)), abs=2e-4)


def test_the_log_odds_of_three_labels_are_against_both_others():
    from types import SimpleNamespace

    from ivgcli.models.prompts import PromptFormat
    from ivgcli.scoring.pointwise import RewardModel

    class Fixed(torch.nn.Module):
        """A classifier that always says 0.2, 0.3 and 0.5."""

        config = SimpleNamespace(max_position_embeddings=None)
        device = torch.device("cpu")

        def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
            logits = torch.tensor([0.2, 0.3, 0.5]).log() + 7.0
            return SimpleNamespace(logits=logits.expand(len(batch["input_ids"]), 3))

    reader = tokenizer("bytes")
    for label, chance in enumerate([0.2, 0.3, 0.5]):
        scorer = RewardModel("fixed", Fixed(), reader, PromptFormat(reader), label)
        [found] = scorer.score(["a"], ["b"], [True])
        assert found == pytest.approx(math.log(chance / (1 - chance)), abs=1e-5)


def test_the_reward_of_a_model_with_one_output_is_that_output():
    reward = Reward(RewardSpec.model_validate(folder("scalar")), Networks("cpu"))
    [found], _ = reward.score(Prompted("p", "the", None, "the"), [" film"], [False])
    ids = torch.tensor([tokenizer("bytes")("the film")["input_ids"]])
    with torch.inference_mode():
        assert found == pytest.approx(float(plain_value("scalar")(ids).logits), abs=1e-4)


@pytest.mark.parametrize(
    ("model", "label", "told"),
    [
        (
            "two-labels",
            None,
            "a classifier with 2 labels (LABEL_0, LABEL_1), and reward.label names",
        ),
        ("two-labels", "POSITIVE", 'no label "POSITIVE" → known: LABEL_0, LABEL_1; or 0 to 1'),
        ("two-labels", 2, 'no label "2"'),
        ("scalar", 0, "has one output and no labels → leave reward.label out"),
    ],
)
def test_a_label_that_does_not_suit_the_model_is_told(model, label, told):
    spec = RewardSpec.model_validate({"model": folder(model), "label": label})
    with pytest.raises(ModelError) as raised:
        Reward(spec, Networks("cpu"))
    assert told in str(raised.value)


def test_a_chat_reward_reads_the_conversation_and_others_its_text():
    class Heard:
        """A scorer that keeps what it was asked."""

        name = "heard"

        def score(self, prompts: Any, responses: Any, finished: Any) -> list[float]:
            self.prompts = prompts
            return [0.0] * len(responses)

    talk = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    asked = Prompted("p", None, talk, "a\n\nb")
    reward = Reward(RewardSpec.model_validate(VOWELS), Networks("cpu"))
    reward._scorer = heard = Heard()
    reward.score(asked, ["x", "y"], [True, True])
    assert heard.prompts == ["a\n\nb"] * 2
    reward._reads_messages = True
    reward.score(asked, ["x", "y"], [True, True])
    assert heard.prompts == [talk] * 2


def test_relabelling_scores_both_responses_and_draws_nothing():
    pairs = [
        Pair(Prompt("a", "x", None, {"n": 1}), "aei", "xyz"),
        Pair(Prompt("b", "x", None), "", "o"),
    ]
    writer = Gathered(["b"])
    plan = SynthesizeRecipe.model_validate({"reward": VOWELS, "relabel": True})
    assert plan.base is None
    summary = score_again(plan, pairs, writer)
    assert (summary.records, summary.failures, summary.tokens) == (1, [], 0)
    [chosen, rejected] = writer.answers["a"]
    assert [(each["response"], each["reward"]) for each in (chosen, rejected)] == [
        ("aei", 3.0),
        ("xyz", 0.0),
    ]
    assert (chosen["sample"], rejected["sample"], chosen["n"]) == (0, 1, 1)


def test_plain_pairs_of_a_chat_model_are_remarked_upon():
    _, summary = drawn(prompts(["a film?"]), base=folder("llama-chat"))
    assert CHAT_AS_TEXT in summary.notes
    _, summary = drawn(prompts(["a film?"]), base=folder("llama-chat"), conversational=True)
    assert CHAT_AS_TEXT not in summary.notes


def test_an_adapter_is_refused_as_a_reward_before_its_base_is_loaded(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": folder("scalar")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="an adapter, where a whole reward model is needed"):
        Reward(RewardSpec.model_validate(str(tmp_path)), Networks("cpu"))
