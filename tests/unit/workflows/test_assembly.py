"""What is refused before anything is loaded."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from ivgcli.errors import ModelError
from ivgcli.models import loading
from ivgcli.models.loading import Networks
from ivgcli.workflows.generate import assemble, build_mode
from tests.models import folder, pair, recipe


@pytest.mark.parametrize("mode", ["eft-i", "ivg"])
@pytest.mark.parametrize(
    ("guide", "vocabulary", "sentence"),
    [
        ("llama-permuted", "same", "vocabulary: same, but token"),
        ("words", "auto", "tokens cannot be guided by it: the guide: a WordLevel tokenizer"),
    ],
)
def test_a_token_guide_that_will_not_do_is_refused_before_any_weights_are_loaded(
    guide: str, vocabulary: str, sentence: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(Networks, "_load", lambda *given: loaded.append(given))
    spec = {"implicit": pair(guide, guide), "explicit": folder("scalar")}
    with pytest.raises(ModelError) as told:
        assemble(recipe("llama", mode, guide=spec, vocabulary=vocabulary), None)
    assert sentence in told.value.what
    assert "use a guide of the base's family" in told.value.hint
    assert loaded == []


def test_a_guide_that_ranks_chunks_may_have_another_vocabulary() -> None:
    guide = {"implicit": pair("llama-permuted", "llama-permuted")}
    assert assemble(recipe("llama", "cbs-i", guide=guide), None).base.network.name == folder(
        "llama"
    )


def test_a_tokenizer_is_loaded_and_a_reference_resolved_once_for_all_its_roles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The vocabularies are compared before the weights are loaded, with the same tokenizers."""
    read, resolved = [], []
    honest_read, honest_resolve = AutoTokenizer.from_pretrained, loading.resolve

    def reading(source: str, **options: object) -> object:
        read.append(source)
        return honest_read(source, **options)

    def resolving(model: str, say: object) -> object:
        resolved.append(model)
        return honest_resolve(model, say)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", reading)
    monkeypatch.setattr(loading, "resolve", resolving)
    plan = recipe("llama", "eft-i", guide={"implicit": pair("llama-tuned", "llama-reference")})
    build_mode(plan, assemble(plan, None))
    expected = sorted(folder(name) for name in ("llama", "llama-tuned", "llama-reference"))
    assert sorted(resolved) == expected
    assert len(read) == 3
