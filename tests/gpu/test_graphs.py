"""Captured steps on a GPU: the tokens of single steps, no host in between, the flash kernel in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ivgcli.decoding.burst import STEPS, Burst
from ivgcli.models.flash import flash_agrees
from ivgcli.models.network import Network
from tests.models import PROMPTS, decode, folder, pair, recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}


@pytest.mark.parametrize("mode", ["base", "eft-i", "cbs-i", "cbs-e", "ivg"])
@pytest.mark.parametrize("warp", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=str)
def test_replayed_steps_draw_what_single_steps_draw(mode: str, warp: dict[str, float]) -> None:
    """In float32; log-probabilities agree to 1e-3, kernels sum in orders of their own."""
    plan = recipe("llama", mode, guide=GUIDE, sampling={"max_new_tokens": 40, **warp})
    alone, ahead = (decode(plan, device="cuda", graphs=each) for each in ("off", "on"))
    assert not ahead.warnings
    assert ahead.engine.stepper.burst.replays > 0
    assert ahead.tokens() == alone.tokens()
    for key, expected in alone.outcomes.items():
        found = ahead.outcomes[key].winner
        assert found.base_logprob == pytest.approx(expected.winner.base_logprob, abs=1e-3)
        assert found.kl == pytest.approx(expected.winner.kl, abs=1e-3)


def test_every_step_after_the_first_is_a_replay() -> None:
    plan = recipe("llama", "eft-i", guide=GUIDE, sampling={"max_new_tokens": 1 + 3 * STEPS})
    run = decode(plan, rows=8, device="cuda", graphs="on", eos_ids=frozenset())
    assert run.engine.stepper.burst.replays == 3 * STEPS
    assert len(run.engine.stepper.burst.tables) == 1
    assert run.network("llama").ledger.passes == 1 + 3 * STEPS


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Burst._advance

    def watched(burst: Burst, table: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            advance(burst, table)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Burst, "_advance", watched)
    plan = recipe("llama", "eft-i", guide=GUIDE, sampling={"max_new_tokens": 20, "top_p": 0.9})
    decode(plan, PROMPTS[:2], device="cuda", graphs="on")  # tries the kernels out first
    assert not decode(plan, PROMPTS[:2], device="cuda", graphs="on").warnings


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(
    ("heads", "kept", "width"),
    [(32, 8, 128), (32, 32, 128), (12, 12, 64), (9, 3, 64), (25, 25, 64)],
)
def test_torch_s_flash_kernel_reads_slots_in_place(
    heads: int, kept: int, width: int, windowed: bool
) -> None:
    """The shapes of Mistral-7B, Llama-2-7B, GPT-2, SmolLM2 and GPT-2 XL."""
    assert flash_agrees(torch.device("cuda"), torch.bfloat16, heads, kept, width, windowed)


def test_logits_of_half_precision_weights_are_summed_in_float32() -> None:
    """bfloat16 keeps 8 bits: around 20 its steps are 0.125, and float32 has no such steps."""
    head = torch.nn.Linear(64, 500, bias=False, device="cuda", dtype=torch.bfloat16)
    network = Network("n", torch.nn.Module(), None, head, 500)
    hidden = 8 * torch.randn(4, 64, device="cuda", dtype=torch.bfloat16)
    exact = hidden.double() @ head.weight.double().T
    found = network.outputs(hidden)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 1e-3
    assert float((head(hidden).double() - exact).abs().max()) > 1e-3


@pytest.mark.parametrize("mode", ["eft-i", "ivg"])
def test_company_leaves_no_trace_in_any_bit(mode: str) -> None:
    """In bfloat16, by replayed steps, where a product of another height would sum in another order."""
    engine = {"deterministic": True}
    plan = recipe("llama", mode, guide=GUIDE, sampling={"max_new_tokens": 40}, engine=engine)
    wide, narrow = (
        decode(plan, rows=rows, device="cuda", dtype="bfloat16", graphs="on") for rows in (24, 4)
    )
    for key, expected in wide.outcomes.items():
        found = narrow.outcomes[key].winner
        assert found.row.tokens == expected.winner.row.tokens
        assert (found.base_logprob, found.value) == (
            expected.winner.base_logprob,
            expected.winner.value,
        )
