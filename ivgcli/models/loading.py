"""Load networks, each copy of weights once: models, adapters over a shared base, value heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ivgcli.errors import ModelError
from ivgcli.models import checkpoints
from ivgcli.models.hub import (
    load_errors,
    quantization,
    quiet_transformers,
    source_options,
)
from ivgcli.models.memory import keep_large_blocks
from ivgcli.models.network import Network, NotDrivable
from ivgcli.models.packed import PackedWeights
from ivgcli.models.references import Reference, resolve
from ivgcli.models.shards import Shards, require_shardable
from ivgcli.models.slots import ATTENTION
from ivgcli.recipes import BaseSpec, ModelSpec

LANGUAGE_MODEL = "language model"
VALUE = "value"

VALUE_CLASSES = ("SequenceClassification", "ForScore", "ForTokenScore", "RewardModel")
"""What the architecture of a value model says of itself."""

MERGE = "merge it (merge_and_unload, save_pretrained) and name the merged folder"
"""What to do with an adapter that cannot be switched on and off over a shared base."""


class Networks:
    """All networks of a run; asking twice for the same weights gives the same object.

    Args:
        device: torch device name, None for CUDA where there is one.
        dtype: `auto` (float32 on a CPU, bfloat16 on a GPU) or a torch dtype's name, for models that do not say.
        say: told when something takes long.
        deterministic: whether results must not depend, to the bit, on what is read together.
    """

    def __init__(
        self,
        device: str | None = None,
        dtype: str | None = None,
        say: Callable[[str], None] = lambda sentence: None,
        deterministic: bool = False,
    ) -> None:
        self.deterministic = deterministic
        self.device = chosen_device(device)
        if self.device.type == "cpu":
            keep_large_blocks()
        self.dtype = dtype or "auto"
        self.say = say
        self._loaded: dict[tuple, Network] = {}
        self._readers: dict[tuple, tuple[Any, str]] = {}
        self._references: dict[str, Reference] = {}
        self._tokenizers: dict[tuple[str, str | None], Any] = {}

    def language_model(self, spec: ModelSpec) -> tuple[Network, str | None]:
        """Return the network of a language model, and the name of its adapter if it is one over a shared base.

        The base of a recipe may be divided among several processes; whatever reads with its weights shares that.
        """
        reference = self._resolve(spec.model)
        plain = Reference(reference.source, reference.revision)
        network = self._get(spec, plain, LANGUAGE_MODEL)
        return network, None if reference.adapter is None else self._adapter(
            network, reference.adapter
        )

    def value_model(self, spec: ModelSpec) -> tuple[Network, str | None]:
        """Return the network of a value read at every prefix (D = number of outputs).

        It is a sequence classifier, or a published reward model with the head of a family of `checkpoints.HEADED`.
        """
        reference = self._resolve(spec.model)
        if reference.adapter is not None:
            return self._merged_value(spec, reference), None
        return self._get(spec, reference, VALUE), None

    def classifier(self, spec: ModelSpec) -> tuple[Any, Any]:
        """Return a sequence classifier with one label and its tokenizer, for whole texts; encoders are welcome.

        Raises:
            ModelError: it has several labels, or is an adapter without a head.
        """
        model, tokenizer, _ = self.reward_model(spec)
        if model.config.num_labels != 1:
            what = (
                f"a classifier with {model.config.num_labels} labels, not a reward model with one"
            )
            raise ModelError(spec.model, what, "wrap it in a Python callable: module:function")
        return model, tokenizer

    def reward_model(self, spec: ModelSpec, adapter: str = "auto") -> tuple[Any, Any, str]:
        """Return a published reward model, its tokenizer and the family it is of, for whole texts.

        Args:
            spec: the reward model.
            adapter: the family, or `auto`: as config.json and the weights say.

        Raises:
            ModelError: it is of no known family, or not of the one that is named.
        """
        reference = self._resolve(spec.model)
        key = (reference, adapter, self._dtype(spec), spec.quantization)
        if key not in self._readers:
            load = self._read_whole if reference.adapter is None else self._adapted_classifier
            self._readers[key] = load(spec, reference, adapter)
        model, family = self._readers[key]
        return model, self.tokenizer(spec), family

    def _read_whole(self, spec: ModelSpec, reference: Reference, adapter: str) -> tuple[Any, str]:
        """Load a reward model that is no adapter; return it with its family."""
        family = self._family(spec, reference) if adapter == "auto" else adapter
        if family in checkpoints.HEADED:
            return self._headed(spec, reference, family, attention=None)[0], family
        auto = AutoModelForSeq2SeqLM if family == "seahorse" else AutoModelForSequenceClassification
        return self._from_pretrained(auto, spec, reference, attention=None)[0], family

    def _adapted_classifier(
        self, spec: ModelSpec, reference: Reference, adapter: str
    ) -> tuple[Any, str]:
        """Load a classifier trained as an adapter, merged into a copy of its base; return it with its family."""
        from peft import PeftConfig

        folder = str(reference.adapter)
        with load_errors(spec.model):
            outputs = None
            if PeftConfig.from_pretrained(folder).task_type == "SEQ_CLS":
                kept = checkpoints.stored_weights(folder, {}, checkpoints.ADAPTER_WEIGHTS)
                outputs = checkpoints.adapter_outputs(kept)
        if outputs is None or adapter not in ("auto", "classifier", "pair"):
            raise ModelError(spec.model, "an adapter, where a whole reward model is needed", MERGE)
        model = self._merged(spec, reference, outputs, attention=None)
        return model, checkpoints.natural(model.config) if adapter == "auto" else adapter

    def tokenizer(self, spec: ModelSpec) -> Any:
        """Return a model's tokenizer, loaded once and without the weights."""
        reference = self._resolve(spec.model)
        key = (reference.source, reference.revision)
        if key not in self._tokenizers:
            with load_errors(spec.model), quiet_transformers():
                self._tokenizers[key] = AutoTokenizer.from_pretrained(
                    reference.source, **source_options(spec, reference)
                )
        return self._tokenizers[key]

    def _resolve(self, model: str) -> Reference:
        """Return what a reference means; asked once, because a GGUF file is known by its content."""
        if model not in self._references:
            self._references[model] = resolve(model, self.say)
        return self._references[model]

    def all(self) -> list[Network]:
        """Return every network loaded so far."""
        return list(self._loaded.values())

    def _get(self, spec: ModelSpec, reference: Reference, kind: str) -> Network:
        key = (reference.source, reference.revision, kind, self._dtype(spec), spec.quantization)
        if key not in self._loaded:
            self._loaded[key] = self._load(spec, reference, kind)
        return self._loaded[key]

    def _dtype(self, spec: ModelSpec) -> torch.dtype:
        name = spec.dtype if spec.dtype not in (None, "auto") else self.dtype
        if name in (None, "auto"):
            return torch.float32 if self.device.type == "cpu" else torch.bfloat16
        return getattr(torch, name)

    def _load(self, spec: ModelSpec, reference: Reference, kind: str) -> Network:
        shards = None
        if kind == LANGUAGE_MODEL:
            architectures = self._config(spec, reference).architectures or []
            if any(value in name for name in architectures for value in VALUE_CLASSES):
                what = f"a value model ({architectures[0]}), not a language model"
                raise ModelError(spec.model, what, "use it as guide.explicit")
            if isinstance(spec, BaseSpec) and spec.divided:
                shards = Shards(int(spec.shards or 1))
                require_shardable(spec.model, self._config(spec, reference), shards.count)
            model, tokenizer = self._from_pretrained(
                AutoModelForCausalLM, spec, reference, shards=shards
            )
            head = model.get_output_embeddings()
            width = int(head.weight.shape[0])
        else:
            model, tokenizer = self._value(spec, reference)
            head = getattr(model, "score", None)
            if head is None:
                what = f"a {model.config.model_type} classifier has no per-token value head"
                raise NotDrivable(spec.model, what)
            width = int(model.config.num_labels)
        network = Network(spec.model, model, tokenizer, head, width, shards=shards)
        network.require_drivable()
        self._arrange(network)
        return network

    def _arrange(self, network: Network) -> None:
        """Lay a network's weights out for its device, and its work in blocks where that is asked for."""
        if network.shards is None:
            PackedWeights(network.model).attach()
        if self.deterministic:
            network.fix_heights()

    def _value(self, spec: ModelSpec, reference: Reference) -> tuple[Any, Any]:
        """Load a value's network, whatever its head is called on disk."""
        family = self._family(spec, reference)
        if family in checkpoints.HEADED:
            return self._headed(spec, reference, family)
        if family == "seahorse":
            kind = self._config(spec, reference).architectures[0]
            what = f"a language model ({kind}): it has no value head"
            raise ModelError(spec.model, what, checkpoints.NO_HEAD)
        return self._from_pretrained(AutoModelForSequenceClassification, spec, reference)

    def _family(self, spec: ModelSpec, reference: Reference) -> str:
        """Return the family that config.json and the weights of a reward model speak of."""
        config = self._config(spec, reference)
        with load_errors(spec.model):
            return checkpoints.recognise(spec.model, config, self._weights(spec, reference))

    def _weights(self, spec: ModelSpec, reference: Reference) -> checkpoints.StoredWeights:
        with load_errors(spec.model):
            return checkpoints.stored_weights(reference.source, source_options(spec, reference))

    def _headed(
        self,
        spec: ModelSpec,
        reference: Reference,
        family: str,
        attention: str | None = ATTENTION,
    ) -> tuple[Any, Any]:
        """Load a published reward model as a stock sequence classifier, by renaming its weights."""
        weights, config = self._weights(spec, reference), self._config(spec, reference)
        checkpoints.require_head(spec.model, family, weights)
        headed = checkpoints.HEADED[family]
        with load_errors(spec.model):
            config.num_labels = weights.shape(f"{headed.head}.weight")[0]
        model, tokenizer = self._from_pretrained(
            AutoModelForSequenceClassification,
            spec,
            reference,
            attention,
            config=config,
            key_mapping=headed.key_mapping,
        )
        with load_errors(spec.model):
            checkpoints.complete_head(model, family, weights)
        return model, tokenizer

    def _config(self, spec: ModelSpec, reference: Reference) -> Any:
        with load_errors(spec.model):
            return AutoConfig.from_pretrained(reference.source, **source_options(spec, reference))

    def _from_pretrained(
        self,
        auto: Any,
        spec: ModelSpec,
        reference: Reference,
        attention: str | None = ATTENTION,
        shards: Shards | None = None,
        **rest: Any,
    ) -> tuple[Any, Any]:
        options = source_options(spec, reference)
        if shards is not None:
            rest["distributed_config"] = shards.plan
        tokenizer = self.tokenizer(spec)
        with load_errors(spec.model), quiet_transformers():
            model, report = auto.from_pretrained(
                reference.source,
                dtype=self._dtype(spec),
                attn_implementation=attention,
                quantization_config=quantization(spec.quantization),
                device_map={"": self.device} if spec.quantization else None,
                output_loading_info=True,
                **options,
                **rest,
            )
        missing = sorted(report["missing_keys"])
        if missing:
            what = (
                f"weights are missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}"
            )
            raise ModelError(spec.model, what, "name a complete checkpoint")
        model = model.eval().requires_grad_(False)
        placed = spec.quantization is not None or shards is not None
        return (model if placed else model.to(self.device)), tokenizer

    def _adapter(self, network: Network, folder: str) -> str:
        """Put an adapter over a loaded network (once) and return its name."""
        from peft import PeftConfig, PeftModel

        if network.shards is not None:
            what = "an adapter cannot share the weights of a base that is divided among GPUs"
            raise ModelError(folder, what, MERGE)
        name = f"adapter-{folder}".replace(".", "-")
        with load_errors(folder):
            config = PeftConfig.from_pretrained(folder)
        if config.is_prompt_learning or getattr(config, "modules_to_save", None):
            kind = f"a {config.peft_type.value} adapter with its own modules or virtual tokens"
            raise ModelError(folder, f"{kind} cannot share the base's weights", MERGE)
        with load_errors(folder):
            if network.adapters is None:
                network.adapters = PeftModel.from_pretrained(
                    network.model, folder, adapter_name=name
                )
                network.adapters.eval()
            elif name not in network.adapters.peft_config:
                network.adapters.load_adapter(folder, adapter_name=name)
        if self.deterministic:
            network.fix_heights()
        if network.model.get_output_embeddings() is not network.head:
            # The head is applied on its own, to the positions that matter, and would leave its adapter out.
            raise ModelError(
                folder,
                f"a {config.peft_type.value} adapter over the output head cannot share the base's weights",
                MERGE,
            )
        return name

    def _merged_value(self, spec: ModelSpec, reference: Reference) -> Network:
        """Load a value head trained as an adapter, merged into a copy of its base."""
        key = (reference, VALUE, self._dtype(spec))
        if key not in self._loaded:
            merged = self._merged(spec, reference, outputs=1)
            network = Network(spec.model, merged, self.tokenizer(spec), merged.score, 1)
            network.require_drivable()
            self._arrange(network)
            self._loaded[key] = network
        return self._loaded[key]

    def _merged(
        self,
        spec: ModelSpec,
        reference: Reference,
        outputs: int,
        attention: str | None = ATTENTION,
    ) -> Any:
        """Load a sequence classifier with an adapter merged into it."""
        from peft import PeftModel

        plain = Reference(reference.source, reference.revision)
        with load_errors(spec.model), quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(
                plain.source,
                num_labels=outputs,
                dtype=self._dtype(spec),
                attn_implementation=attention,
                **source_options(spec, plain),
            )
            merged = PeftModel.from_pretrained(model, reference.adapter).merge_and_unload()
        return merged.eval().requires_grad_(False).to(self.device)


def chosen_device(name: str | None) -> torch.device:
    """Return the device of that name, or the first CUDA device, or the CPU.

    Raises:
        ModelError: CUDA is asked for and not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise ModelError("engine.device", f'no device "{name}"', "cpu, cuda or cuda:N") from problem
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "engine.device", f'"{name}", but torch sees no CUDA device', "--device cpu"
        )
    return device
