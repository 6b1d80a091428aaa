"""Plans against closed forms, against the parameters of real networks, and against what real runs read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
)

from ivgcli.decoding.search import Request
from ivgcli.models.loading import Networks
from ivgcli.models.sizes import find, size_of
from ivgcli.recipes import (
    BonRecipe,
    EngineSpec,
    JudgeRecipe,
    ModelSpec,
    RewardSpec,
    SynthesizeRecipe,
)
from ivgcli.workflows.capacity import affordable_rows
from ivgcli.workflows.judge_plan import plan_judge
from ivgcli.workflows.plan import Plan, plan_bon, plan_generate, plan_synthesize, reader
from ivgcli.workflows.reckoning import Course
from ivgcli.workflows.survey import Asked, Question, Survey
from tests.models import (
    PROMPTS,
    decode,
    engine_of,
    folder,
    pair,
    prompted,
    recipe,
    scratch,
    tokenizer,
)

TOKENS = 16
CHUNK = {"beam_width": 2, "successors": 2, "chunk_length": 5}
SCALAR = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
TOKEN_Q = {**SCALAR, "explicit": folder("token-q")}
ONE_MODEL = {
    "implicit": {"model": folder("llama"), "tuned_prompt": "good: ", "reference_prompt": "bad: "}
}
OWN_BASE = {"implicit": pair("llama-tuned", "llama")}
ASKED = Asked("prompts", tuple(Question(text) for text in PROMPTS), len(PROMPTS))
PROMPT_TOKENS = sum(len(tokenizer("bytes")(text)["input_ids"]) for text in PROMPTS)


def planned(plan: Plan) -> Counter[str]:
    """Return the tokens of each network, all its roles together."""
    found: Counter[str] = Counter()
    for part in plan.parts:
        found[part.name] += part.tokens or 0
    return found


def ledgers(run: Any) -> dict[str, int]:
    return {network.name: network.ledger.tokens for network in run.assembly.networks.all()}


EXACT = [
    ("base", SCALAR, {}),
    ("eft-i", SCALAR, {}),
    ("eft-i", SCALAR, {"every": 3}),
    ("eft-i", SCALAR, {"every": 2}),
    ("eft-e", SCALAR, {"candidates": 4, "outside": "drop"}),
    ("eft-e", TOKEN_Q, {}),
    ("eft-e", TOKEN_Q, {"every": 2}),
    ("cbs-i", SCALAR, {}),
    ("cbs-e", SCALAR, {}),
    ("cbs-e", TOKEN_Q, {}),
    ("ivg", SCALAR, {}),
    ("eft-i+cbs-i", SCALAR, {}),
    ("eft-e+cbs-i", TOKEN_Q, {}),
    ("eft-i", ONE_MODEL, {}),
    ("cbs-i", ONE_MODEL, {}),
    ("eft-i", OWN_BASE, {}),
    ("cbs-i", OWN_BASE, {}),
]


@pytest.mark.parametrize(("mode", "guide", "token"), EXACT)
def test_full_responses_read_exactly_the_tokens_that_were_planned(
    mode: str, guide: dict, token: dict
) -> None:
    """No id ends a response here, so that the upper bound is what happens."""
    sampling = {"max_new_tokens": TOKENS, "samples": 2}
    plan = recipe("llama", mode, guide=guide, token=token, chunk=CHUNK, sampling=sampling)
    run = decode(plan, rows=40, eos_ids=frozenset())
    assert planned(plan_generate(plan, ASKED)) == Counter(ledgers(run))


@pytest.mark.parametrize("mode", ["eft-e", "eft-e+cbs-e"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_scalar_guide_reads_no_more_than_planned_and_a_tenth_less_at_most(
    mode: str, every: int
) -> None:
    """What was drawn beside the candidates is read again; that it is all tokens is the bound."""
    token = {"candidates": 4, "every": every}
    plan = recipe(
        "llama", mode, guide=SCALAR, token=token, chunk=CHUNK, sampling={"max_new_tokens": TOKENS}
    )
    told = planned(plan_generate(plan, ASKED))
    read = ledgers(decode(plan, rows=20, eos_ids=frozenset()))
    assert told[folder("llama")] == read[folder("llama")]
    assert read[folder("scalar")] <= told[folder("scalar")] <= 1.1 * read[folder("scalar")]


def test_responses_that_end_early_read_less_than_planned() -> None:
    plan = recipe("llama", "ivg", guide=SCALAR, chunk=CHUNK, sampling={"max_new_tokens": TOKENS})
    told, read = planned(plan_generate(plan, ASKED)), ledgers(decode(plan, rows=20))
    assert set(told) == set(read)
    assert all(read[name] < told[name] for name in read)


def test_best_of_n_draws_n_responses_and_reads_each_prompt_once() -> None:
    """N·(T − 1) tokens of the base for each prompt, N·T of the value, and the prompts once."""
    plan = BonRecipe.model_validate(
        {
            "base": folder("llama"),
            "guide": SCALAR,
            "by": "explicit",
            "best_of": 3,
            "sampling": {"max_new_tokens": TOKENS},
        }
    )
    searches = 3 * len(PROMPTS)
    assert planned(plan_bon(plan, ASKED)) == {
        folder("llama"): PROMPT_TOKENS + searches * (TOKENS - 1),
        folder("scalar"): PROMPT_TOKENS + searches * TOKENS,
    }


def test_a_network_of_another_vocabulary_is_said_to_read_text() -> None:
    guide = {"explicit": folder("scalar-other")}
    plan = recipe("llama", "cbs-e", guide=guide, chunk=CHUNK, sampling={"max_new_tokens": TOKENS})
    found = plan_generate(plan, ASKED)
    assert any("it reads responses as text, which is estimated" in note for note in found.notes)
    # Four rankings of 16 tokens in chunks of 5, each with one token read again, in four rows.
    own = sum(len(tokenizer("other")(text)["input_ids"]) for text in PROMPTS)
    assert found.parts[1].tokens == own + len(PROMPTS) * 4 * (TOKENS + 4)


@pytest.mark.parametrize(
    ("tuned", "reference", "vocabulary", "told"),
    [
        ("llama-other", "llama-other-reference", "auto", "it guides tokens by their bytes"),
        ("llama-other", "llama-other-reference", "same", "THIS RUN WOULD BE REFUSED"),
        ("llama-other", "llama-other-reference", "ids", "ids are taken as they are"),
        ("words-tuned", "words-reference", "auto", "cannot be guided by it: THIS RUN WOULD BE"),
        ("llama-permuted", "llama-permuted", "auto", "a table says which token is which"),
    ],
)
def test_a_plan_says_what_becomes_of_a_token_guide_of_another_vocabulary(
    tuned: str, reference: str, vocabulary: str, told: str
) -> None:
    guide = {"implicit": pair(tuned, reference)}
    plan = plan_generate(recipe("llama", "eft-i", guide=guide, vocabulary=vocabulary), ASKED)
    assert sum(told in note for note in plan.notes) == len({tuned, reference})


def test_guidance_in_bytes_reads_about_as_much_as_planned() -> None:
    """IN_BYTES is measured on English; random networks over toy vocabularies stay within a factor of two."""
    guide = {"implicit": pair("llama-other", "llama-other-reference")}
    plan = recipe("llama", "eft-i", guide=guide, sampling={"max_new_tokens": 12})
    run = decode(plan, eos_ids=frozenset())
    planned = {part.role: part.tokens for part in plan_generate(plan, ASKED).parts}
    for role, name in (("tuned", "llama-other"), ("reference", "llama-other-reference")):
        assert 0.5 < run.network(name).ledger.tokens / planned[role] < 2


def test_whole_texts_are_counted_as_a_loop_over_the_steps_counts_them() -> None:
    course = Course(rows=4, chunk_length=5, every=2, candidates=3, outside="prefix")
    prompt, total = 7, 0
    for length in range(0, 16, 2):  # the guided steps: three candidates, and the prefix itself
        total += 3 * (prompt + length + 1) + (prompt + length)
    for length in (5, 10, 15, 16):  # the rankings
        total += prompt + length
    assert course.whole_texts(prompt, 16, guides=True, ranks=True) == 4 * total
    assert Course().whole_texts(prompt, 16, guides=False, ranks=True) == prompt + 16


@pytest.mark.parametrize(
    ("mode", "token"),
    [("cbs-e", {}), ("eft-e", {"candidates": 3}), ("eft-e+cbs-e", {"candidates": 3, "every": 2})],
)
def test_an_encoder_reads_a_little_less_than_planned_for_its_text_has_fewer_tokens(
    mode: str, token: dict
) -> None:
    """A BERT has no head that could be driven. What is drawn token by token is longer than its text
    in tokens, by a tenth to a fifth for these networks."""
    path, vocabulary = scratch("bert"), tokenizer("ascii")
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=1,
        pad_token_id=vocabulary.pad_token_id,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    vocabulary.save_pretrained(path)
    sampling = {"max_new_tokens": TOKENS}
    guide = {"explicit": str(path)}
    plan = recipe("llama-ascii", mode, guide=guide, token=token, chunk=CHUNK, sampling=sampling)
    texts = [text for text in PROMPTS if text.isascii()]
    asked = Asked("prompts", tuple(map(Question, texts)), len(texts))
    value = plan_generate(plan, asked).parts[1]
    assembly, engine = engine_of(plan, 20, eos_ids=frozenset())
    engine.meters = assembly.meters
    engine.resize(20)
    done = list(engine.run([Request(each) for each in prompted(texts)]))
    read = [spent for outcome in done for spent in outcome.spent if spent.role == "value"]
    total = sum(spent.tokens for spent in read)
    assert total <= value.tokens <= 1.25 * total
    assert value.found.size.flops_per_token == read[0].flops_per_token
    assert value.row is None


@pytest.mark.parametrize(
    "name",
    ["llama", "gpt2", "mistral", "llama-padded", "scalar", "token-q", "scalar-gpt2", "two-labels"],
)
def test_planned_memory_is_that_of_the_parameters_that_would_be_loaded(name: str) -> None:
    spec, networks = ModelSpec(model=folder(name)), Networks("cpu")
    kind = "classifier" if name.startswith(("scalar", "token-q", "two")) else "language model"
    found = find(spec, kind)
    load = networks.language_model if kind == "language model" else networks.value_model
    network, _ = load(spec)
    real = sum(weight.numel() * weight.element_size() for weight in network.model.parameters())
    assert Survey(EngineSpec(device="cpu")).weight_bytes(spec, found) == real
    half = ModelSpec(model=folder(name), dtype="bfloat16")
    assert Survey(EngineSpec(device="cpu")).weight_bytes(half, found) == real / 2
    assert found.size.flops_per_token == network.flops_per_token
    assert found.size.outputs == network.width
    assert found.missing is None


def test_a_head_that_is_the_embedding_is_counted_once() -> None:
    config = AutoModelForCausalLM.from_pretrained(folder("gpt2")).config
    config.tie_word_embeddings = True
    size = size_of(config, "language model")
    real = AutoModelForCausalLM.from_config(config)
    assert size.tied
    assert size.parameters == sum(weight.numel() for weight in real.parameters())
    value = size_of(config, "classifier", "scalar")
    assert size.with_head(1).parameters == value.parameters
    assert size.with_head(1).multiplied == value.multiplied


def test_a_token_meets_two_of_eight_experts() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    config = MixtralConfig(**shape, num_attention_heads=4, num_key_value_heads=2)
    expert = 3 * 16 * 32
    size = size_of(config, "language model")
    embedding = 50 * 16
    assert size.multiplied == size.parameters - embedding - 2 * 6 * expert


def test_keys_and_values_of_a_row_are_as_large_as_the_cache_of_the_engine() -> None:
    plan = recipe("llama", "ivg", guide=SCALAR, chunk=CHUNK, sampling={"max_new_tokens": TOKENS})
    found = plan_generate(plan, ASKED)
    run = decode(plan, rows=20)
    # The engine reserves the longest prompt and response of a stream.
    real = sum(stream.cache.store.nbytes for stream in run.engine.streams)
    assert 20 * found.row == real


@pytest.mark.parametrize(
    ("mode", "guide"),
    [("ivg", SCALAR), ("eft-i", {"implicit": pair("llama-other", "llama-other-reference")})],
    ids=["one vocabulary", "in bytes"],
)
def test_rows_are_those_that_the_engine_would_choose(
    mode: str, guide: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 4 * 2**20
    for module in ("plan", "capacity"):
        monkeypatch.setattr(f"ivgcli.workflows.{module}.free_memory", lambda device: free)
    sampling = {"max_new_tokens": TOKENS, "samples": 100}
    plan = recipe("llama", mode, guide=guide, chunk=CHUNK, sampling=sampling)
    _, engine = engine_of(plan, 4)
    found = plan_generate(plan, ASKED)
    readers = [stream.network.tokenizer for stream in engine.streams]
    longest = max(len(reader(text)["input_ids"]) for reader in readers for text in PROMPTS)
    # The engine asks when the weights are loaded, the plan before.
    monkeypatch.setattr("ivgcli.workflows.capacity.free_memory", lambda _: free - found.weights)
    rows = affordable_rows(engine.streams, longest + TOKENS, engine.ranking.rows)
    assert 4 < rows < 128
    assert any(line.startswith(f"{rows} rows at once") for line in found.lines)


def test_the_reward_of_synthesis_reads_every_prompt_and_response_once() -> None:
    plan = SynthesizeRecipe.model_validate(
        {
            "base": folder("llama"),
            "reward": folder("scalar"),
            "responses": 4,
            "sampling": {"max_new_tokens": TOKENS},
        }
    )
    reward = plan_synthesize(plan, ASKED).parts[-1]
    assert reward.role == "reward"
    assert reward.tokens == 4 * (PROMPT_TOKENS + len(PROMPTS) * TOKENS)


def test_a_text_beyond_a_networks_context_counts_as_the_context() -> None:
    asked = Asked("texts", (Question("the film opens " * 100),), 1)
    survey = Survey(EngineSpec(device="cpu"))
    part = reader(survey, "reward", RewardSpec(model=ModelSpec(model=folder("scalar"))), asked, 0)
    assert part.tokens == 96  # tests.models.CONTEXT


def test_prompts_that_are_not_here_are_told_and_their_tokens_left_out() -> None:
    asked = Asked("hf:someone/prompts:test", None, 10, "their number is --limit's")
    found = plan_generate(recipe("llama", sampling={"max_new_tokens": TOKENS}), asked)
    assert planned(found) == {folder("llama"): 10 * (TOKENS - 1)}
    assert found.notes == (
        "not here: hf:someone/prompts:test (their number is --limit's; their own tokens are not"
        " counted)",
    )


def test_a_published_model_that_is_not_here_has_the_size_of_the_table() -> None:
    """2·2·(32 layers)·(8 heads)·128 bytes of keys and values a token, 14.0 GiB of weights."""
    plan = recipe("llama", "cbs-e", guide={"explicit": "sfairXC/FsfairX-LLaMA3-RM-v0.1"})
    plan = plan.model_copy(update={"base": ModelSpec(model="meta-llama/Meta-Llama-3-8B-Instruct")})
    plan = plan.model_copy(update={"engine": EngineSpec(device="cuda", dtype="bfloat16")})
    found = plan_generate(plan, Asked("p", None, 1))
    base, value = found.parts
    assert base.found.missing == value.found.missing == "not on this machine"
    assert base.weights == 2 * 8_030_261_248
    # The head of 128,256 tokens makes room for one of one output.
    assert value.weights == base.weights - 2 * 4096 * (128_256 - 1)
    assert base.row == value.row == 2 * 2 * 32 * 8 * 128 * 256
    assert "on cuda" in found.lines[1]


def test_a_model_that_nobody_knows_is_told_and_leaves_the_sums_open() -> None:
    plan = recipe("llama").model_copy(update={"base": ModelSpec(model="someone/something")})
    found = plan_generate(plan, ASKED)
    assert found.parts[0].found.missing == "not on this machine"
    assert found.weights is None
    assert found.parts[0].flops is None
    missing = recipe("llama").model_copy(update={"base": ModelSpec(model="runs/a/base")})
    assert plan_generate(missing, ASKED).parts[0].found.missing == "no such folder"


def test_an_adapter_over_the_base_takes_its_own_few_weights_and_keys_and_values() -> None:
    base = AutoModelForCausalLM.from_pretrained(folder("llama"))
    target = scratch("adapter")
    adapter = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapter.save_pretrained(target)
    few = sum(weight.numel() for name, weight in adapter.named_parameters() if "lora" in name)
    guide = {"implicit": {"tuned": str(target), "reference": folder("llama")}}
    plan = recipe("llama", "eft-i", guide=guide, sampling={"max_new_tokens": TOKENS})
    found = plan_generate(plan, ASKED)
    whole = found.parts[0].weights
    assert [part.weights for part in found.parts] == [whole, 4 * few, 0]
    assert found.parts[1].row == found.parts[0].row
    assert found.parts[2].row is None
    run = decode(plan, rows=8, eos_ids=frozenset())
    assert sum(part.tokens for part in found.parts) == sum(ledgers(run).values())


def test_a_model_that_is_no_value_model_is_said_to_be_none() -> None:
    found = plan_generate(recipe("llama", "cbs-e", guide={"explicit": folder("gpt2")}), ASKED)
    assert found.parts[1].found.missing == (
        "a language model (GPT2LMHeadModel): a value head has to be among its weights"
    )


def test_a_judge_reads_both_responses_in_both_orders_and_a_server_is_asked_as_often() -> None:
    judge = {"against": "other.jsonl", "judge": folder("llama")}
    asked = Asked("r.jsonl", tuple(Question(text, None, "a bad ending") for text in PROMPTS), 5)
    found = plan_judge(JudgeRecipe.model_validate({"pairwise": judge}), asked)
    count = tokenizer("bytes")
    response = len(count("a bad ending")["input_ids"])
    assert found.parts[0].tokens == 2 * 2 * (PROMPT_TOKENS + len(PROMPTS) * response)
    judge["judge"] = "openai:gpt-4"
    [server] = plan_judge(JudgeRecipe.model_validate({"pairwise": judge}), asked).parts
    assert (server.found, server.tokens, server.notes) == (
        None,
        None,
        ("10 questions to a server",),
    )
