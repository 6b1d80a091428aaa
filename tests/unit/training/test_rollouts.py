"""Responses that are drawn to be learnt from, and the continuations of their prefixes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from ivgcli import console
from ivgcli.errors import RecordError
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.text import response_text
from ivgcli.recipes import TrainExplicitRecipe
from ivgcli.records import Prompt, TrainingFolder
from ivgcli.training import rollouts
from ivgcli.training.answers import Answer
from ivgcli.training.continuations import branch, completed, continued, mean_targets
from ivgcli.training.explicit import Explicit
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
from ivgcli.values import Prompted
from tests.models import CHAT, decode, folder, plain, recipe, scratch, tokenizer

LIMIT = 6
"""Tokens of a drawn response."""

TALK = ({"role": "user", "content": "a film?"},)
ASKED = [Prompt("a", "the film opens", None), Prompt("b", "an effective but", None)]


def setting_of(base: str = "llama", **sections: Any) -> Setting:
    """Return the setting of a run over an empty folder, in which responses are drawn."""
    raw = {
        "init": {"model": folder("llama-tuned")},
        "reward": "tests.toys:vowels",
        "value": {"responses": "base"},
        "rollouts": {"base": folder(base), "sampling": {"max_new_tokens": LIMIT}},
        "engine": {"device": "cpu"},
    }
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
    place = TrainingFolder(scratch("run"), "7c1e0b92", "", False)

    def bar(title: str, total: int, done: int, things: str = "steps") -> console.Progress:
        return console.Progress(total, done=done, quiet=True)

    return Setting(TrainExplicitRecipe.model_validate(raw), place, bar)


def vowelled(answers: Sequence[Answer]) -> list[Answer]:
    """Return answers with the number of their vowels for a reward."""
    return [
        dataclasses.replace(each, reward=float(sum(char in "aeiou" for char in each.text)))
        for each in answers
    ]


def refused(answers: Sequence[Answer]) -> list[Answer]:
    """Refuse to reward."""
    raise RecordError("p1", "has no reward")


def lines(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Return the records of a file of rollouts."""
    path = setting.folder.path / rollouts.FOLDER / f"{name}.jsonl"
    return list(map(json.loads, path.read_text().splitlines()))


# --------------------------------------------------------------------------------------- drawing


def test_what_is_drawn_is_what_the_engine_draws() -> None:
    """The same seed gives the same responses, in the order of prompts and samples."""
    setting = setting_of()
    found = rollouts.draw(setting, "round-1", ASKED, 3, None, vowelled, 5)
    sampling = {"max_new_tokens": LIMIT, "samples": 3}
    # The draws depend on the records' ids.
    own = [Prompted(each.id, each.text, None, each.text or "") for each in ASKED]
    run = decode(recipe("llama", sampling=sampling, seed=5), own)
    expected = [run.outcomes[each.id, sample] for each in ASKED for sample in range(3)]
    assert [each.text for each in found] == [each.text for each in expected]
    assert [each.ended for each in found] == [each.winner.row.finish == "eos" for each in expected]
    assert [each.id for each in found][:3] == ["a/round-1/0", "a/round-1/1", "a/round-1/2"]
    assert found == vowelled(found)
    kept = lines(setting, "round-1")
    assert [line["reward"] for line in kept] == [each.reward for each in found]
    assert {line["mode"] for line in kept} == {"base"}
    assert [each.name for each in (setting.folder.path / "rollouts").iterdir()] == ["round-1.jsonl"]


def test_nothing_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn responses wait for their rewards, and rewarded ones for whoever learns from them."""
    setting = setting_of()
    drawings: list[int] = []
    generate = rollouts.generate

    def counted(recipe: Any, prompts: Any, writer: Any, *rest: Any) -> Any:
        drawings.append(len(prompts) * recipe.sampling.samples - len(writer.done))
        return generate(recipe, prompts, writer, *rest)

    monkeypatch.setattr(rollouts, "generate", counted)
    with pytest.raises(RecordError, match="p1: has no reward"):
        rollouts.draw(setting, "round-1", ASKED, 3, None, refused, 5)
    found = rollouts.draw(setting, "round-1", ASKED, 3, None, vowelled, 5)
    again = rollouts.draw(setting, "round-1", ASKED, 3, None, refused, 5)
    assert (drawings, found) == ([6, 0], again)
    assert found == rollouts.draw(setting_of(), "round-1", ASKED, 3, None, vowelled, 5)


def test_a_drawing_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, whole = setting_of(), setting_of()
    generate = rollouts.generate

    class Stopping:
        """A writer that stops the run after three responses."""

        def __init__(self, writer: Any) -> None:
            self.writer, self.done, self.left = writer, writer.done, 3

        def write(self, record: Any) -> None:
            self.writer.write(record)
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def stopped(recipe: Any, prompts: Any, writer: Any, *rest: Any) -> Any:
        return generate(recipe, prompts, Stopping(writer), *rest)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "generate", stopped)
        with pytest.raises(KeyboardInterrupt):
            rollouts.draw(setting, "round-1", ASKED, 3, None, vowelled, 5)
    found = rollouts.draw(setting, "round-1", ASKED, 3, None, vowelled, 5)
    assert found == rollouts.draw(whole, "round-1", ASKED, 3, None, vowelled, 5)
    assert lines(setting, "round-1") == lines(whole, "round-1")


class Place:
    """One of two processes; the other one is waited for in name only."""

    def __init__(self, first: bool) -> None:
        self.first = first
        self.waited = 0

    def wait(self) -> None:
        """Count."""
        self.waited += 1


def test_a_failure_of_the_process_that_draws_is_a_sentence_in_the_others() -> None:
    """Found as their traceback about a closed connection: the first one left them waiting."""
    setting = setting_of()
    told = {True: "p1: has no reward", False: "round-1.jsonl: the first process has not drawn it"}
    for first, what in told.items():
        place: Any = Place(first)
        setting.processes = place
        with pytest.raises(RecordError, match=what):
            rollouts.draw(setting, "round-1", ASKED, 1, None, refused, 5)
        assert place.waited == 1
    setting.processes = Place(True)  # type: ignore[assignment]
    found = rollouts.draw(setting, "round-1", ASKED, 1, None, vowelled, 5)
    setting.processes = Place(False)  # type: ignore[assignment]
    assert rollouts.draw(setting, "round-1", ASKED, 1, None, refused, 5) == found


def test_a_prompt_that_cannot_be_answered_is_told() -> None:
    setting = setting_of("gpt2")
    prompts = [*ASKED, Prompt("long", "film " * 200, None)]
    with pytest.raises(RecordError) as raised:
        rollouts.draw(setting, "round-1", prompts, 1, None, vowelled, 5)
    told = str(raised.value)
    assert told.startswith("long: cannot be answered (1 of 3): ")
    assert told.endswith(" → mend the prompt or leave it out")
    assert not (setting.folder.path / "rollouts" / "round-1.jsonl").exists()


def test_rounds_do_not_repeat_each_other_s_draws() -> None:
    """The report, ten rounds, and the choices and draws of their continuations have their own seeds."""
    spec = setting_of(seed=3).recipe
    numbers = [0, *(base + n for base in (0, 1_000, 2_000) for n in range(1, 11))]
    assert len({rollouts.seed_of(spec, number) for number in numbers}) == len(numbers)


# ---------------------------------------------------------------------------------- continuations


@pytest.mark.parametrize("name", ["llama", "llama-chat", "llama-metaspace"])
@pytest.mark.parametrize("template", [None, "Q: {prompt}\nA:"])
@pytest.mark.parametrize("asked", [Prompt("p", "the film", None), Prompt("p", None, TALK)])
def test_a_continuation_s_prompt_is_prompt_and_prefix_token_by_token(
    name: str, template: str | None, asked: Prompt
) -> None:
    """Chat, a template around the prompt, or neither: the prefix comes after all of it, as it is."""
    form = PromptFormat(tokenizer(name.removeprefix("llama").lstrip("-") or "bytes"), template)
    encoder = Encoder(form)
    text = "  a tender film, and the story opens\n "
    example = encoder.encode(asked, text, ended=False)
    for t in range(len(example.response_ids) + 1):
        begun = response_text(encoder.tokenizer, example.prompt_ids, example.response_ids[:t])
        prompt = continued(asked, begun, "p#1")
        ids = form.encode(prompt.text, prompt.messages)
        assert ids == example.prompt_ids + example.response_ids[:t]


def test_a_template_that_trims_leaves_the_prefix_alone() -> None:
    """Many chat templates trim what each message says, and a prefix often ends with a space."""
    reader = tokenizer("chat")
    trimming = CHAT.replace("m['content']", "m['content'] | trim")
    form = PromptFormat(reader)
    try:
        reader.chat_template = trimming
        prompt = continued(Prompt("p", None, TALK), " a tender ", "p#1")
        rendered = form.render(prompt.text, prompt.messages)
    finally:
        reader.chat_template = CHAT
    assert rendered == "<|user|>a film?<|end|><|assistant|> a tender "


def test_branches_are_chosen_alike_by_everyone_and_uniformly() -> None:
    """Each of 5 lengths is one of 2 chosen in 2 of 5 cases: 400 ± 4.5·σ of 1000, σ = 15.5."""
    reader = tokenizer("bytes")
    ids = [*reader(" a good film")["input_ids"][:4], reader.eos_token_id]
    answers = [Answer(f"r{n}", ASKED[0], "") for n in range(1000)]
    examples = [Example(each.id, [40], ids, True) for each in answers]
    found = branch(answers, examples, reader, 2, 0, 7)
    assert found == branch(answers, examples, reader, 2, 0, 7)
    assert found[:9] == branch(answers[:9], examples[:9], reader, 2, 0, 7), "whoever else is there"
    assert {len(places) for places in found} == {2}
    counts = Counter(t for places in found for t, _ in places)
    assert counts.keys() == set(range(5))
    assert all(abs(count - 400) < 70 for count in counts.values())
    assert all(one < two for (one, _), (two, _) in found)
    # A token-Q head has no value of the empty response that could be trained.
    later = branch(answers[:50], examples[:50], reader, 5, 1, 7)
    assert {tuple(t for t, _ in places) for places in later} == {(1, 2, 3, 4)}
    assert later[0][0][1].id == "r0#1"


def test_a_prefix_that_ends_inside_a_character_is_not_chosen() -> None:
    reader = tokenizer("bytes")
    answer = Answer("r", ASKED[0], " 😀.")
    example = Encoder(PromptFormat(reader)).encode(answer.prompt, answer.text)
    size = len(example.response_ids)
    [places] = branch([answer], [example], reader, 99, 0, 7)
    texts = [(prompt.messages or ({"content": ""},))[-1]["content"] for _, prompt in places]
    assert all(text in ("", " ", " 😀", " 😀.") for text in texts)
    assert len(places) < size


def test_targets_are_means_of_what_branches_off() -> None:
    """Rewards 2 and 7 from the prefix of one token, beside the response's own 3: 4, or 4.5 without it."""
    answer = Answer("r", ASKED[0], "ab", reward=3.0)
    example = Example("r", [40], [50, 51, 1], True)
    prompt = continued(answer.prompt, "a", "r#1")
    drawn = [Answer(f"r#1/{n}", prompt, "", reward=reward) for n, reward in enumerate((2.0, 7.0))]
    places = [[(1, prompt)]]
    assert mean_targets([answer], [example], places, drawn, True) == [[3.0, 4.0, 3.0, 3.0]]
    assert mean_targets([answer], [example], places, drawn, False) == [[None, 4.5, None, 3.0]]


def test_what_is_rewarded_is_the_whole_response() -> None:
    """Cut where the responses were cut: the sixth token of one more would have another law."""
    encoder = Encoder(PromptFormat(tokenizer("bytes")))
    source = Answer("r", ASKED[0], " a good film", False)
    begun = continued(source.prompt, " a good", "r#2")
    found = [Answer("r#2/0", begun, " and tender", True), Answer("r#2/1", begun, "", True)]
    free = completed(found, [source], encoder, None)
    assert [(each.text, each.ended) for each in free] == [
        (" a good and tender", True),
        (" a good", True),
    ]
    ids = encoder.encode(source.prompt, " a good and tender").response_ids
    for longest in range(3, len(ids)):
        cut, _ = completed(found, [source], encoder, longest)
        again = encoder.encode(source.prompt, cut.text, cut.ended).response_ids
        assert (again, cut.ended, cut.prompt) == (ids[:longest], False, source.prompt)
    assert completed(found, [source], encoder, len(ids)) == free


# ------------------------------------------------------------------- targets against enumeration


def greedy(ids: list[int], count: int) -> list[int]:
    """Return the base's most likely continuation, token by token, EOS included."""
    found: list[int] = []
    while len(found) < count and tokenizer("bytes").eos_token_id not in found:
        with torch.no_grad():
            logits = plain("llama")(torch.tensor([ids + found])).logits[0, -1]
        found.append(int(logits.argmax()))
    return found


def reward_of(example: Example, ids: Sequence[int]) -> float:
    """Return the vowels of a response in tokens."""
    reader = tokenizer("bytes")
    text = reader.decode([*example.prompt_ids, *ids], skip_special_tokens=True)
    return float(sum(char in "aeiou" for char in text[len(reader.decode(example.prompt_ids)) :]))


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "given"])
@pytest.mark.parametrize("head", ["scalar", "token-q"])
def test_targets_are_those_of_a_base_whose_next_token_is_certain(drawn: bool, head: str) -> None:
    """At temperature 0 every continuation is the greedy one, so that each target is known.

    A drawn response counts itself, so 3 continuations are 2 more; given ones have 3 of their own
    and, being of no policy, no target elsewhere. Drawn ones stop where the response would have.
    """
    value = {"target": "monte-carlo", "continuations": 3, "branches": 2, "head": head}
    setting = setting_of(
        value={**value, "responses": "base" if drawn else "given"},
        rollouts={"sampling": {"max_new_tokens": LIMIT, "temperature": 0.0}},
    )
    stages = Explicit(setting, Start(setting.recipe.init))
    texts = [" a tender", " good", " is fine"]
    answers = vowelled([Answer(f"r{n}", ASKED[0], text, n < 2) for n, text in enumerate(texts)])
    examples = [stages.encoder.encode(each.prompt, each.text, each.ended) for each in answers]
    found = stages.continuation_targets(1, answers, examples)
    assert found is not None
    assert max(len(example.response_ids) for example in examples) <= LIMIT
    first = 0 if head == "scalar" else 1
    elsewhere = 0
    for answer, example, targets in zip(answers, examples, found, strict=True):
        own = float(answer.reward or 0)
        branched = 0
        for t, target in enumerate(targets[:-1]):
            prefix = example.response_ids[:t]
            count = LIMIT - t if drawn else LIMIT
            further = greedy(example.prompt_ids + prefix, count)
            other = reward_of(example, [*prefix, *further])
            expected = (2 * other + own) / 3 if drawn else other
            if target == (own if drawn else None):
                continue
            branched += 1
            assert t >= first
            assert target == pytest.approx(expected)
            elsewhere += other != own
        assert branched <= 2
        assert targets[-1] == own
    assert elsewhere >= 3, "continuations that say something else"
    places = {line["id"] for line in lines(setting, "continuations-1")}
    per_place = Counter(line["id"] for line in lines(setting, "continuations-1"))
    assert len(places) == 2 * len(answers)
    assert set(per_place.values()) == {2 if drawn else 3}


# ------------------------------------------------------------------------------- cd-q's base


def test_the_base_is_asked_in_its_own_format() -> None:
    """Its next tokens are read after its own template, and not after the value's."""
    setting = setting_of(
        init={"model": folder("llama-tuned"), "template": "{prompt} it"},
        rollouts={"base": {"model": folder("llama"), "template": "say {prompt}"}},
        value={"target": "cd-q", "candidates": 4},
    )
    start = Start(setting.recipe.init)
    encoder = Encoder(start.form)
    answers = [Answer("a", ASKED[0], " a film"), Answer("b", ASKED[1], " good", False)]
    examples = [encoder.encode(each.prompt, each.text, each.ended) for each in answers]
    found = rollouts.next_tokens(setting, answers, examples, len(start.tokenizer))
    reader = tokenizer("bytes")
    for answer, example, (tokens, chances) in zip(answers, examples, found, strict=True):
        own = reader(f"say {answer.prompt.text}")["input_ids"]
        assert own != example.prompt_ids
        assert len(tokens) == len(example.response_ids) + 1
        for t in range(len(tokens)):
            with torch.no_grad():
                ids = torch.tensor([own + example.response_ids[:t]])
                top = plain("llama")(ids).logits[0, -1].softmax(-1).topk(4)
            assert tokens[t].tolist() == top.indices.tolist()
            # Float32 of two orders of summing.
            torch.testing.assert_close(chances[t], top.values / top.values.sum(), atol=1e-5, rtol=0)
    assert math.isclose(float(found[0][1][0].sum()), 1.0, rel_tol=1e-6)
