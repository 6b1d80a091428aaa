"""The ids that are trained on are the ids that decoding reads."""

from __future__ import annotations

import pytest

from ivgcli.models.prompts import PromptFormat
from ivgcli.records import Prompt
from ivgcli.training import sequences
from ivgcli.training.sequences import Encoder
from tests.models import CORPUS, tokenizer

TEXTS = [*CORPUS, "naïve café 😀 film", "the  film   opens\n\nwith. it"]


def splits() -> list[tuple[str, str]]:
    """Return every way to take a text for a prompt and the rest for its response."""
    both = [(text[:cut], text[cut:]) for text in TEXTS for cut in range(1, len(text))]
    return [(prompt, response) for prompt, response in both if prompt.strip()]


@pytest.mark.parametrize("name", ["bytes", "other", "metaspace", "chat"])
def test_prompt_ids_are_decodings_and_the_text_is_whole(name: str) -> None:
    """Wherever a text is cut in two, even amid a word whose two parts are one token of the whole."""
    reader = tokenizer(name)
    form = PromptFormat(reader)
    encoder = Encoder(form)
    merged = 0
    for prompt, response in splits():
        found = encoder.encode(Prompt("a", prompt, None), response)
        assert found.prompt_ids == form.encode(prompt, None)
        assert found.response_ids[-1] == reader.eos_token_id
        assert reader.eos_token_id not in found.response_ids[:-1]
        together = reader(form.render(prompt, None) + response, add_special_tokens=not form.chat)
        merged += together["input_ids"][: len(found.prompt_ids)] != found.prompt_ids
        assert reader.decode(found.ids[:-1]) == reader.decode(together["input_ids"])
    # A chat template ends with a special token, which nothing merges with.
    assert merged > 50 or name == "chat"


@pytest.mark.parametrize("name", ["bytes", "metaspace"])
def test_where_nothing_merges_the_ids_are_those_of_the_whole_text(name: str) -> None:
    """Responses begin with a space as models write them; this is what sampling would have drawn."""
    reader = tokenizer(name)
    found = Encoder(PromptFormat(reader)).encode(Prompt("a", "the film", None), " opens with a")
    assert found.ids == [*reader("the film opens with a")["input_ids"], reader.eos_token_id]


def test_a_space_is_neither_lost_nor_added() -> None:
    """SentencePiece's tokenizers open every text with a space, and a response is no text of its own."""
    reader = tokenizer("metaspace")
    encoder = Encoder(PromptFormat(reader))
    prompt = Prompt("a", "the fil", None)
    texts = {
        response: reader.decode(encoder.encode(prompt, response).ids[:-1], skip_special_tokens=True)
        for response in ("m is", " m is", "  m is")
    }
    assert texts == {"m is": "the film is", " m is": "the fil m is", "  m is": "the fil  m is"}
    alone = reader("m is", add_special_tokens=False)["input_ids"]
    assert reader.decode([*reader("the fil")["input_ids"], *alone]).endswith("the fil m is")


def test_an_empty_response_is_its_end() -> None:
    found = Encoder(PromptFormat(tokenizer("bytes"))).encode(Prompt("a", "the film", None), "")
    assert found.response_ids == [tokenizer("bytes").eos_token_id]


def test_the_end_is_there_once_and_only_if_the_response_ended() -> None:
    reader = tokenizer("bytes")
    encoder = Encoder(PromptFormat(reader))
    prompt = Prompt("a", "the film", None)
    plain = encoder.encode(prompt, " opens")
    assert encoder.encode(prompt, " opens<|end|>").response_ids == plain.response_ids
    cut = encoder.encode(prompt, " opens", ended=False, reward=0.5, identity="a/1")
    assert cut.response_ids == plain.response_ids[:-1]
    assert (cut.id, cut.ended, cut.reward) == ("a/1", False, 0.5)


def test_a_conversation_goes_through_the_template_that_decoding_uses() -> None:
    reader = tokenizer("chat")
    turns = tuple(
        {"role": role, "content": text}
        for role, text in (("user", "a film?"), ("assistant", "good"), ("user", "the end?"))
    )
    form = PromptFormat(reader, system="be kind")
    found = Encoder(form).encode(Prompt("a", None, turns), "bad")
    assert found.prompt_ids == form.encode(None, turns)
    assert reader.decode(found.ids) == (
        "<|system|>be kind<|end|><|user|>a film?<|end|><|assistant|>good<|end|><|user|>the end?"
        "<|end|><|assistant|>bad<|end|>"
    )


def test_the_anchors_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the sweep above finds texts with a space too many: it can fail."""
    monkeypatch.setattr(sequences, "ANCHORS", ())
    with pytest.raises(AssertionError):
        test_prompt_ids_are_decodings_and_the_text_is_whole("metaspace")
