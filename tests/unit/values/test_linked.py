"""A value behind a link, and the recipe's key for it."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from ivgcli.decoding import Mode, TokenGuidance
from ivgcli.recipes import ExplicitSpec
from ivgcli.values import Prompted, Row
from ivgcli.values.linked import LinkedValue, linked
from tests.models import PROMPTS, decode, folder, recipe
from tests.toys import PrefixValue


def log_sigmoid(z: float) -> float:
    """Return log(1/(1 + exp(−z))) as it is written."""
    return math.log(1 / (1 + math.exp(-z)))


def test_a_log_sigmoid_link_turns_logits_into_log_probabilities() -> None:
    numbers = [-30.0, -2.0, 0.0, 0.5, 8.0]
    found = linked(torch.tensor(numbers, dtype=torch.float64), "log-sigmoid")
    assert found.tolist() == pytest.approx([log_sigmoid(z) for z in numbers], abs=1e-12)
    # Far out, where exp(−z) overflows float32, the logit itself is the logarithm.
    assert linked(torch.tensor([-500.0]), "log-sigmoid").item() == -500.0
    outputs = torch.randn(3)
    assert linked(outputs, "identity") is outputs


def test_what_is_not_finite_does_not_pass_for_a_probability_of_one() -> None:
    broken = linked(torch.tensor([math.inf, math.nan, -math.inf]), "log-sigmoid")
    assert broken[0] == math.inf
    assert torch.isnan(broken[1])
    assert broken[2] == -math.inf


def test_all_that_a_value_is_asked_for_passes_through_the_link() -> None:
    toy = PrefixValue(lambda prefix: 0.7 * sum(prefix) - 2.0, 6, needs_candidates=True)
    value = LinkedValue(toy, "log-sigmoid")
    states = [Row(Prompted("p", ""), [], [3]), Row(Prompted("p", ""), [], [])]
    candidates = torch.tensor([[0, 5], [2, 4]])
    found = value.next_values([0, 1], states, candidates)
    expected = [[log_sigmoid(0.7 * z - 2) for z in row] for row in ((3, 8), (2, 4))]
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]
    here = [log_sigmoid(0.1), log_sigmoid(-2.0)]
    assert value.here([0, 1]).tolist() == pytest.approx(here, abs=1e-6)
    assert value.values([0, 1], states).tolist() == pytest.approx(here, abs=1e-6)
    assert (value.name, value.needs_candidates) == ("toy", True)


def test_the_key_defaults_to_identity_and_belongs_to_a_model() -> None:
    assert ExplicitSpec.model_validate("some/model").link == "identity"
    assert ExplicitSpec(model={"model": "m"}, link="log-sigmoid").link == "log-sigmoid"
    with pytest.raises(ValidationError, match="link belongs to a model"):
        ExplicitSpec.model_validate({"callable": "tests.toys:vowels", "link": "log-sigmoid"})
    with pytest.raises(ValidationError, match="log-sigmoid"):
        ExplicitSpec.model_validate({"model": "m", "link": "sigmoid"})


def test_chunks_are_ranked_by_the_link_of_what_they_would_be_ranked_by() -> None:
    """A rising function of the value: the same winners, and their values are its logarithms."""
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 4}
    runs = [
        decode(
            recipe(
                "llama",
                "cbs-e",
                guide={"explicit": {"model": folder("scalar"), "link": link}},
                chunk=chunk,
                sampling={"max_new_tokens": 9},
            ),
            PROMPTS[:2],
        )
        for link in ("identity", "log-sigmoid")
    ]
    assert runs[0].tokens() == runs[1].tokens()
    for key, outcome in runs[0].outcomes.items():
        ours = runs[1].outcomes[key].winner.value
        assert ours == pytest.approx(log_sigmoid(outcome.winner.value), abs=1e-6)


def test_a_broken_head_is_still_told_behind_a_link() -> None:
    def broken(prefix: tuple[int, ...]) -> float:
        return math.inf if len(prefix) == 2 else 0.0

    value = LinkedValue(PrefixValue(broken, 300, needs_candidates=True), "log-sigmoid")
    mode = Mode("toy", TokenGuidance(value, candidates=5))
    run = decode(recipe("llama", sampling={"max_new_tokens": 4}), ["a film"], mode=mode)
    [outcome] = run.outcomes.values()
    assert outcome.winner is None
    assert "gave a number that is not finite" in outcome.failure
