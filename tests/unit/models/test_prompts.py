"""From a record to what a model reads, per model."""

from __future__ import annotations

import pytest
from tokenizers import processors

from ivgcli.errors import RecordError
from ivgcli.models.prompts import PromptFormat
from tests.models import byte_tokenizer, decode, folder, metaspace_tokenizer, recipe, tokenizer

STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% "
    "endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if "
    "add_generation_prompt %}[assistant]{% endif %}"
)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_a_model_without_a_chat_template_reads_the_text_itself():
    assert PromptFormat(tokenizer("bytes")).render("the film", None) == "the film"


def test_braces_and_percent_signs_are_data():
    nasty = "{prompt} {0} {{x}} %s \\n {prompt"
    assert PromptFormat(tokenizer("bytes")).render(nasty, None) == nasty
    assert (
        PromptFormat(tokenizer("bytes"), template="Q {x}: {prompt} A:").render("{y} {x}", None)
        == "Q {x}: {y} {x} A:"
    )
    assert (
        PromptFormat(tokenizer("chat")).render("{{ 7 * 7 }} {% raw %}", None)
        == "<|user|>{{ 7 * 7 }} {% raw %}<|end|><|assistant|>"
    )


def test_a_prompt_that_says_prompt_is_not_filled_in_again():
    assert (
        PromptFormat(tokenizer("bytes"), template="A{prompt}B").render("x{prompt}y", None)
        == "Ax{prompt}yB"
    )


def test_a_chat_model_reads_its_own_template():
    form = PromptFormat(tokenizer("chat"))
    assert form.render("hi", None) == "<|user|>hi<|end|><|assistant|>"
    talk = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert (
        form.render(None, talk)
        == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>"
    )


def test_a_system_prompt_replaces_the_conversation_s_own():
    form = PromptFormat(tokenizer("chat"), system="S")
    assert (
        form.render(None, turns(("system", "old"), ("user", "a")))
        == "<|system|>S<|end|><|user|>a<|end|><|assistant|>"
    )
    assert (
        PromptFormat(tokenizer("chat"))
        .render(None, turns(("system", "old"), ("user", "a")))
        .startswith("<|system|>old")
    )


def test_a_template_that_refuses_a_system_role_gets_it_in_front_of_the_first_message():
    strict = byte_tokenizer(chat=STRICT)
    assert (
        PromptFormat(strict, system="Be kind.").render("hi", None)
        == "[user]Be kind.\n\nhi[assistant]"
    )
    assert (
        PromptFormat(strict).render(None, turns(("system", "Be kind."), ("user", "hi")))
        == "[user]Be kind.\n\nhi[assistant]"
    )


def test_a_chat_template_that_refuses_a_conversation_is_a_sentence_about_the_record():
    strict = byte_tokenizer(chat="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RecordError) as caught:
        PromptFormat(strict).render("hi", None, "p7")
    assert (
        str(caught.value)
        == "p7: the chat template refuses the conversation (roles must alternate) → "
        "check its roles and their order"
    )


def test_a_conversation_for_a_model_without_a_template_is_refused_unless_it_is_one_question():
    form = PromptFormat(tokenizer("bytes"))
    assert form.render(None, turns(("user", "a"))) == "a"
    with pytest.raises(
        RecordError,
        match="p7: a conversation, but the model has no chat template → give it a prompt",
    ):
        form.render(None, turns(("user", "a"), ("assistant", "b"), ("user", "c")), "p7")


def test_chat_true_without_a_template_is_refused():
    with pytest.raises(RecordError, match="chat: true, but the tokenizer has no chat template"):
        PromptFormat(tokenizer("bytes"), chat=True)


def test_chat_false_and_a_template_of_one_s_own_leave_the_chat_template_alone():
    assert PromptFormat(tokenizer("chat"), chat=False).render("hi", None) == "hi"
    assert PromptFormat(tokenizer("chat"), template="> {prompt}\n").render("hi", None) == "> hi\n"


def test_a_template_with_chat_wraps_the_last_question_only():
    form = PromptFormat(tokenizer("chat"), template="Review: {prompt}", chat=True)
    talk = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
    assert (
        form.render(None, talk)
        == "<|user|>a<|end|><|assistant|>b<|end|><|user|>Review: c<|end|><|assistant|>"
    )
    assert talk[2]["content"] == "c", "the record keeps what it said"


def test_ids_begin_with_one_bos_whether_the_tokenizer_or_the_template_writes_it():
    plain = tokenizer("metaspace")
    assert PromptFormat(plain).encode("the film", None)[:2].count(plain.bos_token_id) == 1
    chat = metaspace_tokenizer()
    chat.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ids = PromptFormat(chat).encode("the film", None)
    assert ids.count(chat.bos_token_id) == 1
    assert ids[0] == chat.bos_token_id


def test_an_eos_that_a_tokenizer_adds_by_itself_does_not_end_the_prompt():
    closing = byte_tokenizer()
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    assert closing("a film")["input_ids"][-1] == 1
    assert PromptFormat(closing).encode("a film", None) == tokenizer("bytes")("a film")["input_ids"]


def test_base_and_guides_read_a_prompt_each_in_its_own_format():
    """The base is a chat model, the pair is not: the engine gives each its own ids and all the same
    response."""
    guide = {
        "implicit": {
            "tuned": folder("llama-tuned"),
            "reference": {"model": folder("llama-reference"), "template": "Say: {prompt}"},
        }
    }
    run = decode(
        recipe("llama-chat", "eft-i", guide=guide, sampling={"max_new_tokens": 5}), ["the film"]
    )
    tuned, reference = run.engine.values[0].streams()
    assert (
        run.outcomes["p0", 0].winner.row.prompt_ids
        == tokenizer("chat")("<|user|>the film<|end|><|assistant|>")["input_ids"]
    )
    assert tuned.prompts.encode("the film", None) == tokenizer("bytes")("the film")["input_ids"]
    assert (
        reference.prompts.encode("the film", None)
        == tokenizer("bytes")("Say: the film")["input_ids"]
    )
    assert {stream.responses_read(0) for stream in (tuned, reference)} == {
        len(run.tokens()["p0", 0]) - 1
    }


def test_a_prompt_is_rendered_and_encoded_once_however_often_it_is_asked_for(monkeypatch):
    """Values by text ask for it at every chunk, and a chat template takes longer than its tokens."""
    form = PromptFormat(tokenizer("chat"))
    calls = []
    honest = form.tokenizer.apply_chat_template

    def counting(*given, **named):
        calls.append(given)
        return honest(*given, **named)

    monkeypatch.setattr(form.tokenizer, "apply_chat_template", counting)
    first = form.encode("a film", None)
    assert [form.encode("a film", None) for _ in range(3)] == [first] * 3
    assert len(calls) == 1
    assert form.encode(None, ({"role": "user", "content": "a film"},)) == first
    assert form.encode("another", None) != first
    assert len(calls) == 3, "another prompt is another rendering"
