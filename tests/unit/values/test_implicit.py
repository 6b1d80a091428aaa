"""The implicit value where logits are extreme."""

from __future__ import annotations

import pytest
import torch

from ivgcli.models.failures import RowFailure
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from ivgcli.values import Prompted, Row
from ivgcli.values.implicit import FLOOR, ImplicitValue
from ivgcli.values.weighted import WeightedSum
from tests.models import folder, tokenizer
from tests.toys import PrefixValue


def pair_of_streams(rows: int = 2) -> tuple[ImplicitValue, list[Row]]:
    networks = Networks("cpu")
    streams = []
    ids = tokenizer("bytes")("the film")["input_ids"]
    for name in ("llama-tuned", "llama-reference"):
        network, _ = networks.language_model(ModelSpec(model=folder(name)))
        stream = Stream(network, PromptFormat(network.tokenizer), rows)
        read_all([Reading(stream, list(range(rows)), [ids] * rows, prompt=True)])
        streams.append(stream)
    return ImplicitValue("pair", *streams), [
        Row(Prompted("p", "the film"), ids) for _ in range(rows)
    ]


def logits(
    monkeypatch: pytest.MonkeyPatch, stream: Stream, change: dict[int, float], row: int = 0
) -> None:
    outputs = stream.outputs

    def changed(rows):
        found = outputs(rows).clone()
        for token, number in change.items():
            found[rows.index(row), token] = number
        return found

    monkeypatch.setattr(stream, "outputs", changed)


def test_a_token_that_both_forbid_has_log_ratio_zero(monkeypatch):
    value, states = pair_of_streams()
    for stream in value.streams():
        logits(monkeypatch, stream, {7: float("-inf")})
    ratios = value.next_values([0, 1], states, None)
    assert float(ratios[0, 7]) == 0.0
    assert torch.isfinite(ratios).all()


def test_a_token_that_one_forbids_is_forbidden_or_forced_but_finite(monkeypatch):
    value, states = pair_of_streams()
    logits(monkeypatch, value.tuned, {7: float("-inf")})
    logits(monkeypatch, value.reference, {9: float("-inf")})
    ratios = value.next_values([0, 1], states, None)
    assert float(ratios[0, 7]) == pytest.approx(FLOOR, rel=1e-3)
    assert float(ratios[0, 9]) == pytest.approx(-FLOOR, rel=1e-3)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("token", [0, 150])
def test_one_bad_logit_anywhere_names_the_network_and_the_row(monkeypatch, number, token):
    value, states = pair_of_streams()
    logits(monkeypatch, value.reference, {token: number}, row=1)
    with pytest.raises(
        RowFailure, match="llama-reference: gave a number that is not finite"
    ) as caught:
        value.next_values([0, 1], states, None)
    assert caught.value.rows == [1]


def test_candidates_get_what_the_whole_vocabulary_gives_them():
    value, states = pair_of_streams()
    full = value.next_values([0, 1], states, None)
    some = torch.tensor([[3, 250, 3], [0, 299, 17]])
    assert torch.equal(value.next_values([0, 1], states, some), full.gather(1, some))


def test_a_weighted_sum_is_the_sum_of_its_parts_cut_to_the_narrowest():
    parts = [
        PrefixValue(lambda prefix: float(prefix[-1] if prefix else 5), 6),
        PrefixValue(lambda prefix: float(len(prefix)), 4),
    ]
    total = WeightedSum(parts, [2.0, -3.0])
    states = [Row(Prompted("p", ""), [], [3]), Row(Prompted("p", ""), [], [])]
    assert total.next_values([0, 1], states, None).tolist() == [
        [2.0 * token - 3.0 * 2 for token in range(4)],
        [2.0 * token - 3.0 for token in range(4)],
    ]
    assert total.here([0, 1]).tolist() == [2.0 * 3 - 3.0, 2.0 * 5 - 0.0]
    assert total.values([0, 1], states).tolist() == [2.0 * 3 - 3.0, 2.0 * 5 - 0.0]
    assert not total.needs_candidates
    assert WeightedSum(
        [parts[0], PrefixValue(lambda prefix: 0.0, 6, needs_candidates=True)], [1.0, 1.0]
    ).needs_candidates
