"""FUDGE by cross-entropy: V is the logit of p(a | prefix), and guidance adds its log-sigmoid.

With weight 1 and every token a candidate, the next token's distribution is
    p(a | s)·σ(z(s·a)) / Σ_b p(b | s)·σ(z(s·b)).

Reference: Yang and Klein (2021), FUDGE, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ivgcli.decoding.guidance import tilted
from ivgcli.models.readings import Reading, read_all
from ivgcli.values import Row
from tests import oracles
from tests.models import (
    PROMPTS,
    engine_of,
    folder,
    plain,
    plain_value,
    prompted,
    recipe,
    tokenizer,
)

RESPONSE = [61, 9, 200, 33]
SIZE = 300
ALL = {"candidates": SIZE, "outside": "drop"}


def logits_after(name: str, prefix: list[int]) -> np.ndarray:
    """Return z(s·a) (V,) of every next token a, by plain forwards."""
    model = plain_value(name)
    if name == "token-q":
        return oracles.head_outputs(model, prefix)[-1]
    continued = torch.tensor([[*prefix, a] for a in range(SIZE)])
    with torch.inference_mode():
        hidden = model.base_model(input_ids=continued, use_cache=False).last_hidden_state[:, -1]
        return model.score(hidden)[:, 0].double().numpy()


def guided(name: str, token: dict[str, Any], link: str, prefix: list[int], cut: int) -> np.ndarray:
    """Return the guided next-token distribution (V,) after a prompt and the first tokens of RESPONSE."""
    guide = {"explicit": {"model": folder(name), "link": link}}
    assembly, engine = engine_of(recipe("llama", "eft-e", guide=guide, token=token), rows=1)
    [prompt] = prompted([PROMPTS[0]])
    response = RESPONSE[:cut]
    state = Row(prompt, prefix[: len(prefix) - cut], response)
    with torch.inference_mode():
        for stream in engine.streams:
            read_all([Reading(stream, [0], [prefix[: len(prefix) - cut]], prompt=True)])
        value = engine.mode.token.value
        value.start(0, state)
        read_all([stream.unread([0], [response]) for stream in engine.streams])
        logprobs = assembly.base.outputs([0])[:, :SIZE].log_softmax(-1)
        tilt = tilted(engine.mode.token, logprobs, [0], [state])
    return torch.softmax(tilt.double(), -1)[0].numpy()


@pytest.mark.parametrize("cut", [0, 4])
@pytest.mark.parametrize(("name", "token"), [("scalar", ALL), ("token-q", {}), ("token-q", ALL)])
def test_guidance_by_a_logit_is_the_base_times_its_sigmoid(name, token, cut):
    """Tolerance: log-probabilities and logits of size 10 in float32 are off by about 1e-5."""
    prefix = [*tokenizer("bytes")(PROMPTS[0])["input_ids"], *RESPONSE[:cut]]
    base = np.exp(oracles.next_logprobs(plain("llama"), prefix))
    sigmoid = 1 / (1 + np.exp(-logits_after(name, prefix)))
    expected = base * sigmoid / (base * sigmoid).sum()
    found = guided(name, token, "log-sigmoid", prefix, cut)
    assert np.abs(found - expected).max() < 2e-5
    # The link matters: the logit itself tilts to another distribution.
    assert np.abs(guided(name, token, "identity", prefix, cut) - expected).max() > 0.01
