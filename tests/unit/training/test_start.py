"""What training starts from: the first layers as they were, and padding that is not the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)

from ivgcli.errors import ModelError
from ivgcli.recipes import ModelSpec
from ivgcli.recipes.training import InitSpec
from ivgcli.training.start import Start, load_trained, settle_padding
from tests.models import folder, plain_value, scratch, tokenizer


def gemma() -> str:
    """Return the folder of a network whose configuration says of every layer what it is."""
    place, reader = scratch("gemma"), tokenizer("bytes")
    config = Gemma3TextConfig(
        vocab_size=len(reader), hidden_size=16, intermediate_size=32, num_hidden_layers=6,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=4,
        sliding_window_pattern=2, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(place)
    reader.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize(("name", "layers"), [("llama", 1), ("gpt2", 1), ("gemma", 3)])
def test_the_first_layers_and_all_around_them_are_the_sources(name: str, layers: int) -> None:
    source = gemma() if name == "gemma" else folder(name)
    cut = Start(InitSpec(model=source, layers=layers)).load()
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ours, theirs = cut.state_dict(), whole.state_dict()
    gone = {key for key in theirs if key not in ours}
    assert ours.keys() < theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Nothing but layers is gone, and of them those from `layers` on.
    numbers = {int(next(part for part in key.split(".") if part.isdigit())) for key in gone}
    assert numbers == set(range(layers, whole.config.num_hidden_layers))
    # Written and read again, it is the network that it was.
    place = scratch("cut")
    cut.save_pretrained(place)
    ids = torch.tensor([[40, 41, 42, 43, 44, 45]])
    with torch.no_grad():
        again = load_trained(str(place), ModelSpec(model=source)).eval()
        assert torch.equal(again(ids).logits, cut.eval()(ids).logits)


def test_more_layers_than_there_are_is_a_sentence() -> None:
    with pytest.raises(ModelError) as raised:
        Start(InitSpec(model=folder("llama"), layers=3))
    assert str(raised.value) == (
        f"{folder('llama')}: has 2 layers, and init.layers is 3 → fewer layers"
    )


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"model": "scalar"}, "a classifier (LlamaForSequenceClassification), not a language"),
        ({"model": "llama", "quantization": "4bit"}, "quantised weights cannot be trained"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError) as raised:
        Start(InitSpec(**{**spec, "model": folder(spec["model"])}))
    assert raised.value.what.startswith(told)


def test_a_model_of_a_lower_precision_is_trained_in_float32() -> None:
    """AdamW's steps are far below the spacing of bfloat16 numbers."""
    place = scratch("half")
    model = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.bfloat16)
    model.save_pretrained(place)
    tokenizer("bytes").save_pretrained(place)
    start = Start(InitSpec(model=str(place)))
    assert {weight.dtype for weight in start.load().parameters()} == {torch.float32}
    assert {weight.dtype for weight in start.load(torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_guide_is_shown_prompts_as_training_was() -> None:
    spec = InitSpec(model=folder("llama"), template="Q: {prompt}", trust_remote_code=True)
    assert Start(spec).described("tuned") == {
        "model": "tuned",
        "template": "Q: {prompt}",
        "trust_remote_code": True,
    }
    assert Start(InitSpec(model=folder("llama"))).described("tuned") == {"model": "tuned"}


def test_a_local_model_is_named_from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(folder("llama"))
    monkeypatch.chdir(place.parent)
    assert Start(InitSpec(model=place.name)).place == str(place.resolve())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"pad_token": "<|pad|>"}, "<|pad|>"),
        ({"pad_token": "<|end|>"}, "last"),
        ({"pad_token": None}, "last"),
        ({"pad_token": "<|end|>", "unk_token": "<|user|>"}, "<|user|>"),
        ({"pad_token": None, "bos_token": "<|system|>"}, "<|system|>"),
        ({"pad_token": None, "unk_token": "<|end|>", "bos_token": "<|end|>"}, "last"),
    ],
)
def test_padding_is_never_the_end_and_no_token_is_added(
    given: dict[str, str | None], expected: str, tmp_path: Path
) -> None:
    tokenizer("bytes").save_pretrained(tmp_path)
    reader = Start(InitSpec(model=folder("llama"))).tokenizer
    for name, token in given.items():
        setattr(reader, name, token)
    size = len(reader)
    reader.padding_side = "left"
    found = settle_padding(reader)
    assert found == reader.pad_token_id != reader.eos_token_id
    assert found == (size - 1 if expected == "last" else reader.convert_tokens_to_ids(expected))
    assert (len(reader), reader.padding_side) == (size, "right")
    reader.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path).pad_token_id == found


@pytest.mark.parametrize("name", ["scalar", "scalar-gpt2"])
def test_transformers_reads_a_classifier_at_the_end_of_the_text(name: str) -> None:
    """It takes the last token that is not padding: with EOS as padding, the one before the end."""
    reader = Start(InitSpec(model=folder("llama"))).tokenizer
    reader.pad_token = None
    pad = settle_padding(reader)
    end = reader.eos_token_id
    texts = [[40, 41, 42, 43, 44, end], [50, 51, end]]
    model = AutoModelForSequenceClassification.from_pretrained(folder(name)).eval()
    batch = torch.tensor([texts[0], [*texts[1], pad, pad, pad]])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    alone = plain_value(name)
    with torch.no_grad():
        states = [alone.base_model(torch.tensor([text])).last_hidden_state[0] for text in texts]
        by_place = [alone.score(each).squeeze(-1) for each in states]
        model.config.pad_token_id = pad
        found = model(batch, attention_mask=mask).logits.squeeze(-1)
        model.config.pad_token_id = end
        wrong = model(batch[:1], attention_mask=mask[:1]).logits.squeeze(-1)
    expected = torch.stack([each[-1] for each in by_place])
    # Another batch, another order of sums: float32 keeps six digits.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wrong[0], by_place[0][-2], atol=1e-5, rtol=1e-5)
    assert (expected[0] - wrong[0]).abs() > 1e-2, "the two places differ"
