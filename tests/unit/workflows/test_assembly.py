"""What is refused before anything is loaded."""

from __future__ import annotations

import pytest

from ivgcli.errors import ModelError
from ivgcli.models.loading import Networks
from ivgcli.workflows.generate import assemble
from tests.models import folder, pair, recipe


@pytest.mark.parametrize("mode", ["eft-i", "ivg"])
def test_a_token_guide_of_another_vocabulary_is_refused_before_any_weights_are_loaded(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(Networks, "_load", lambda *given: loaded.append(given))
    guide = {"implicit": pair("llama-permuted", "llama-permuted"), "explicit": folder("scalar")}
    with pytest.raises(ModelError, match="token guidance needs one vocabulary") as told:
        assemble(recipe("llama", mode, guide=guide), None)
    assert "cbs-i, cbs-e, or ivg bon" in told.value.hint
    assert loaded == []


def test_a_guide_that_ranks_chunks_may_have_another_vocabulary() -> None:
    guide = {"implicit": pair("llama-permuted", "llama-permuted")}
    assert assemble(recipe("llama", "cbs-i", guide=guide), None).base.network.name == folder(
        "llama"
    )
