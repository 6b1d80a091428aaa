"""Guessing ahead changes how often networks are read, and nothing else: not a token, not a number of a record."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ivgcli.decoding import Limits
from ivgcli.decoding.draws import step_keys, stream_key
from ivgcli.decoding.sampling import draw
from ivgcli.decoding.speculation import Speculation
from ivgcli.errors import RecipeError
from ivgcli.recipes import GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.workflows.generate import generate
from tests import oracles
from tests.models import PROMPTS, Run, decode, folder, pair, recipe, scratch, tokenizer
from tests.toys import ListWriter

CHUNK = {"beam_width": 2, "successors": 2, "chunk_length": 5}
NO_END: frozenset[int] = frozenset()


@functools.cache
def near(name: str, noise: float, seed: int = 0) -> str:
    """Return a folder with a network whose matrices are those of another one plus so much of their spread in noise."""
    model = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * (noise * weight.std()))
    return saved(model, f"{name}-near")


@functools.cache
def opposite(name: str) -> str:
    """Return a folder with a network that likes best what another one likes least."""
    model = AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.neg_()
    return saved(model, f"{name}-opposite")


def saved(model: Any, name: str) -> str:
    target = scratch(name)
    model.save_pretrained(target)
    tokenizer("bytes").save_pretrained(target)
    return str(target)


def guide() -> dict[str, Any]:
    """Return a guide whose tuned model guesses the base well in some places and badly in others."""
    implicit = {"tuned": near("llama", 0.15), "reference": near("llama", 0.15, 1)}
    return {"implicit": implicit, "explicit": folder("scalar")}


def plan(mode: str, sampling: dict[str, Any], **rest: Any) -> GenerateRecipe:
    sampling = {"max_new_tokens": 14, **sampling}
    return recipe("llama", mode, **{"guide": guide(), "chunk": CHUNK, "sampling": sampling, **rest})


@functools.cache
def step_by_step(mode: str, sampling: str) -> Run:
    return decode(plan(mode, SAMPLINGS[sampling]), prompts_of(mode), rows=8)


def prompts_of(mode: str) -> list[str]:
    """Return fewer prompts where each of them decodes several candidates."""
    return PROMPTS[:2] if "cbs" in mode or mode == "ivg" else PROMPTS


def require_same(one: Run, other: Run) -> None:
    """Compare tokens, ends and texts exactly, sums of float32 logarithms to 1e-4."""
    assert one.outcomes.keys() == other.outcomes.keys()
    for key, outcome in one.outcomes.items():
        ours, theirs = outcome.winner, other.outcomes[key].winner
        assert (ours.row.tokens, ours.row.finish) == (theirs.row.tokens, theirs.row.finish)
        assert outcome.text == other.outcomes[key].text
        assert outcome.spent == other.outcomes[key].spent
        for number in ("kl", "base_logprob", "value"):
            expected = pytest.approx(getattr(theirs, number), abs=1e-4)
            assert getattr(ours, number) == expected, (key, number)


def require_tidy(run: Run) -> None:
    """Every token read is in a record or rejected, and none is read twice."""
    for stream in run.engine.streams:
        ledger = stream.network.ledger
        sharing = [each for each in run.engine.streams if each.network is stream.network]
        spent = sum(
            outcome.spent[run.engine.streams.index(each)].tokens
            for each in sharing
            for outcome in run.outcomes.values()
        )
        assert ledger.tokens == ledger.prefilled + spent + ledger.rejected
        assert ledger.reread == 0


SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "top-k": {"top_k": 5, "stop": ["e", "film"]},
    "short": {"max_new_tokens": 6},
}
CASES = [
    *[("eft-i", name, length) for name in SAMPLINGS for length in (1, 4, 8)],
    ("eft-i", "plain", "auto"),
    *[("ivg", "plain", 4), ("ivg", "top-p", 8), ("ivg", "greedy", 1)],
    *[("cbs-i", "plain", 1), ("cbs-i", "top-k", 4), ("cbs-i", "greedy", 8)],
    ("eft-i+cbs-i", "plain", 3),
]


@pytest.mark.parametrize(("mode", "sampling", "length"), CASES)
def test_responses_and_their_numbers_are_those_of_plain_steps(mode, sampling, length):
    calm = step_by_step(mode, sampling)
    run = decode(plan(mode, SAMPLINGS[sampling]), prompts_of(mode), rows=8, speculate=length)
    require_same(run, calm)
    require_tidy(run)
    guessed = run.engine.guessed()
    assert guessed is not None
    assert guessed.right > 0
    if length != "auto":
        assert guessed.right < guessed.made, "some guesses have to be wrong for this to prove much"


GUIDES: dict[str, dict[str, Any]] = {
    "reference is the base": {"implicit": {"tuned": near, "reference": "llama"}},
    "two pairs": {
        "implicit": [
            pair("llama-tuned", "llama-reference", weight=0.3),
            {"tuned": near, "reference": "llama-reference", "weight": 0.5},
        ]
    },
    "ids by a table": {"implicit": pair("llama-permuted", "llama-renamed", weight=0.2)},
    "padded heads": {"implicit": pair("llama-padded", "llama-reference", weight=0.2)},
    "two prompts of the base": {
        "implicit": {"model": "llama", "tuned_prompt": "good: ", "reference_prompt": "bad: "}
    },
    "another family": {"implicit": pair("gpt2-tuned", "gpt2-reference", weight=0.2)},
}


def resolved(entry: Any) -> Any:
    """Put folders in place of names."""
    if entry is near:
        return near("llama", 0.15)
    if isinstance(entry, dict):
        return {
            key: resolved(value) if "prompt" not in key else value for key, value in entry.items()
        }
    if isinstance(entry, list):
        return [resolved(each) for each in entry]
    return folder(entry) if entry in ("llama", "llama-reference") else entry


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("mode", ["eft-i", "cbs-i"])
def test_it_holds_for_every_kind_of_implicit_guide(name, mode):
    wanted = plan(mode, {"max_new_tokens": 10}, guide=resolved(GUIDES[name]))
    run = decode(wanted, PROMPTS[:2], rows=8, speculate=3)
    require_same(run, decode(wanted, PROMPTS[:2], rows=8))
    assert run.engine.guessed().rounds > 0


@pytest.mark.parametrize(
    "token",
    [{"candidates": 3}, {"candidates": 3, "outside": "drop"}, {"warp": "before"}, {"weight": -0.5}],
)
def test_it_holds_for_every_way_of_adding_a_value(token):
    wanted = plan("eft-i", {"max_new_tokens": 10, "top_k": 20}, token=token)
    require_same(decode(wanted, rows=8, speculate=3), decode(wanted, rows=8))


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_and_neighbours_do_not_matter_with_guesses_either(rows):
    require_same(decode(plan("eft-i", {}), rows=rows, speculate=4), step_by_step("eft-i", "plain"))


def test_a_run_that_is_resumed_with_another_setting_gives_the_same_records():
    def records(speculate: Any, done: set) -> dict:
        writer = ListWriter()
        writer.done |= done
        prompts = [Prompt(f"p{number}", text, None) for number, text in enumerate(PROMPTS)]
        wanted = plan("eft-i", {}, engine={"speculate": speculate, "rows": 2})
        summary = generate(wanted, prompts, writer)
        assert bool(summary.speculation) == (speculate != "off")
        return writer.by_key()

    whole = records("off", set())
    first = {("p0", 0), ("p3", 0)}
    rest = records(4, first)
    assert rest.keys() == whole.keys() - first
    for key, found in rest.items():
        numbers = {
            name: pytest.approx(found[name], abs=1e-4) for name in ("kl", "base_logprob", "value")
        }
        assert whole[key] == {**found, **numbers}


def alone(tuned: str, length: int, tokens: int, **rest: Any) -> Run:
    """Decode one prompt to a forced length under weight 0: the guided distribution is the base's."""
    implicit = {"tuned": tuned, "reference": near("llama", 0.0, 1)}
    sampling = {"max_new_tokens": tokens, **rest}
    wanted = plan("eft-i", sampling, guide={"implicit": implicit}, token={"weight": 0.0})
    return decode(wanted, ["the film opens"], rows=1, eos_ids=NO_END, speculate=length)


def ledgers(run: Run) -> tuple[Any, ...]:
    base = run.assembly.base
    pair_of = run.engine.values[0].streams()
    return tuple(stream.network.ledger for stream in (base, *pair_of))


@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("tokens", [2, 12, 13])
def test_with_a_guesser_that_is_always_right_the_base_makes_a_pass_for_each_whole_run(
    length, tokens
):
    """⌈T/(γ+1)⌉ passes behind the prompt's; the guesser reads token by token, and nothing is read for nothing."""
    run = alone(near("llama", 0.0), length, tokens)
    prompt = len(tokenizer("bytes")("the film opens")["input_ids"])
    base, tuned, reference = ledgers(run)
    assert base.passes == reference.passes == 1 + math.ceil(tokens / (length + 1))
    assert tuned.passes == tokens
    for ledger in (base, tuned, reference):
        assert ledger.tokens == prompt + tokens - 1
        assert (ledger.rejected, ledger.reread) == (0, 0)
    assert run.engine.guessed().acceptance == 1


def test_with_a_guesser_that_is_never_right_every_pass_still_gives_a_token():
    length, tokens = 3, 10
    run = alone(opposite("llama"), length, tokens, temperature=0)
    prompt = len(tokenizer("bytes")("the film opens")["input_ids"])
    base, tuned, _ = ledgers(run)
    wrong = sum(min(length, tokens - 1 - place) for place in range(tokens))
    # The first round has nothing to read but guesses, and the last token is drawn by a plain step.
    assert base.passes == 1 + tokens
    assert base.tokens == prompt + tokens - 1 + wrong
    assert base.rejected == tuned.rejected == wrong
    guessed = run.engine.guessed()
    assert (guessed.right, guessed.made, guessed.saved) == (0, wrong, 0)


def test_guesses_are_right_where_brute_force_says_so():
    """At every place, guess and check are argmax p/E with one noise E, p from full forwards of two networks."""
    tuned = AutoModelForCausalLM.from_pretrained(near("llama", 0.15)).eval()
    run = alone(near("llama", 0.15), 1, 40)
    (outcome,) = run.outcomes.values()
    response, prompt = outcome.winner.row.tokens, list(outcome.winner.row.prompt_ids)
    guesses = oracles.logits(tuned, prompt + response)[len(prompt) - 1 : -1]
    width, key = len(tokenizer("bytes")), oracles.stream_key(0, "p0", 0, 0)
    agree = [
        int(np.argmax(guesses[place, :width] - np.log(oracles.noise(key, place, width)))) == token
        for place, token in enumerate(response)
    ]
    place = right = made = 0
    while place < len(response) - 1:
        made += 1
        right += agree[place]
        place += 1 + agree[place]
    guessed = run.engine.guessed()
    assert (guessed.right, guessed.made) == (right, made)
    assert 0 < right < made


@pytest.mark.parametrize("distance", [0.3, 1.0, 3.0])
def test_two_distributions_agree_at_least_as_often_as_shared_noise_promises(distance):
    """(1 − TV)/(1 + TV) ≤ Pr ≤ 1 − TV (Daliri, Musco and Suresh 2024), up to four standard errors of n = 20,000."""
    n, size = 20_000, 40
    rng = torch.Generator().manual_seed(1)
    one = torch.randn(size, generator=rng) * 2
    other = one + distance * torch.randn(size, generator=rng)
    keys = step_keys([stream_key(0, "toy", 0, 0)] * n, range(n), torch.device("cpu"))
    ids = torch.arange(size, dtype=torch.int32)
    drawn = [draw(logits.expand(n, -1), Limits(), keys, ids).tokens for logits in (one, other)]
    rate = float((drawn[0] == drawn[1]).double().mean())
    variation = float((one.softmax(-1) - other.softmax(-1)).abs().sum() / 2)
    error = 4 * math.sqrt(0.25 / n)
    assert (1 - variation) / (1 + variation) - error <= rate <= 1 - variation + error


def test_a_guess_that_breaks_a_network_breaks_nothing(monkeypatch):
    """A token that is guessed and never drawn makes the base give NaN: the round is undone, the responses stay."""
    calm = step_by_step("eft-i", "plain")
    made: set[int] = set()
    guess = Speculation._guess

    def noting(self: Speculation, current: Any, *arguments: Any) -> None:
        guess(self, current, *arguments)
        made.update(token for guesses in current.guesses for token in guesses)

    monkeypatch.setattr(Speculation, "_guess", noting)
    decode(plan("eft-i", {}), rows=8, speculate=4)
    used = {token for tokens in calm.tokens().values() for token in tokens}
    used |= {token for prompt in PROMPTS for token in tokenizer("bytes")(prompt)["input_ids"]}
    harmful = sorted(made - used)
    assert harmful
    for place in (0, 1):  # the base, then the guesser

        def spoil(assembly: Any, engine: Any, place: int = place) -> None:
            model = engine.streams[place].network.model
            with torch.no_grad():
                model.get_input_embeddings().weight[harmful] = torch.nan

        run = decode(plan("eft-i", {}), rows=8, speculate=4, prepare=spoil)
        require_same(run, calm)


def refusal(wanted: GenerateRecipe) -> str:
    with pytest.raises(RecipeError) as caught:
        decode(wanted, rows=8, speculate=2)
    return str(caught.value)


def without(**rest: Any) -> GenerateRecipe:
    return plan(rest.pop("mode"), {"max_new_tokens": 2}, **rest)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"mode": "base"}, "mode base has no guide that could guess"),
        ({"mode": "eft-e"}, "only an implicit value in the base's own tokens can guess"),
        ({"mode": "eft-e+cbs-i"}, "only an implicit value in the base's own tokens can guess"),
        (
            {"mode": "eft-i", "vocabulary": "bytes"},
            "only an implicit value in the base's own tokens can guess",
        ),
        (
            {"mode": "eft-i", "token": {"every": 2}},
            "token.every is 2: the guide does not read along",
        ),
        (
            {"mode": "eft-i", "guide": {"implicit": pair("llama", "llama-reference")}},
            "the tuned model of the guide is the base itself",
        ),
    ],
)
def test_a_number_is_refused_where_nothing_can_guess_and_auto_goes_without(wanted, reason):
    assert refusal(without(**wanted)) == (
        f"engine.speculate: 2 tokens are to be guessed ahead, but {reason} "
        "→ leave it at auto, or turn it off"
    )
    run = decode(without(**wanted), PROMPTS[:1], rows=8, speculate="auto")
    assert run.engine.guessed() is None
