"""From a recipe to networks, streams and values, each built once and shared wherever two roles read the same thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ivgcli.decoding.served import ServedBase
from ivgcli.errors import ModelError
from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.loading import Networks
from ivgcli.models.network import Network, NotDrivable
from ivgcli.models.prompts import PLACEHOLDER, PromptFormat
from ivgcli.models.served import ServedNetwork
from ivgcli.models.streams import Stream
from ivgcli.models.translation import Translation
from ivgcli.models.vocabulary import VocabularyMatch, byte_vocabulary, compare
from ivgcli.recipes import BaseSpec, ExplicitSpec, Guide, ImplicitSpec, ModelSpec
from ivgcli.recipes.schema import PrecisionSpec
from ivgcli.scoring.callables import CallableScorer
from ivgcli.scoring.pointwise import BATCH, RewardModel
from ivgcli.values import Value
from ivgcli.values.by_text import (
    Reader,
    RetokenisedImplicitValue,
    RetokenisedScalarValue,
    ScorerValue,
    TextMeter,
)
from ivgcli.values.coverage import Coverage
from ivgcli.values.explicit import ScalarValue, TokenQValue
from ivgcli.values.implicit import ImplicitValue
from ivgcli.values.implicit_bytes import ByteImplicitValue
from ivgcli.values.linked import LinkedValue
from ivgcli.values.precision import Precision
from ivgcli.values.weighted import WeightedSum

ROLES = ("tuned", "reference")

AS_TEXT = "text"
"""How a guide reads the base whose vocabulary is another."""

CHOICES = "use a guide of the base's family, or a mode that ranks by text: cbs-i, cbs-e, or ivg bon"


class Assembly:
    """The base of a run and the values of its guide.

    Args:
        spec: the base.
        device: torch device name, or None.
        dtype: dtype name for models that name none, or None.
        vocabulary: as in a recipe.
        say: told when loading takes long.
        token_guides: models that are to guide tokens, whose vocabulary is looked at before any weights are loaded.
        precision: how exactly a guide of another vocabulary guides tokens.
        serve: opens a base that is served; None: it is loaded here.
        deterministic: whether no result may depend on what is decoded together.
    """

    def __init__(
        self,
        spec: ModelSpec,
        device: str | None = None,
        dtype: str | None = None,
        vocabulary: str = "auto",
        say: Callable[[str], None] = lambda sentence: None,
        token_guides: Sequence[ModelSpec] = (),
        precision: PrecisionSpec | None = None,
        serve: Callable[[Networks], ServedBase] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.networks = Networks(device, dtype, say, deterministic)
        self.vocabulary = vocabulary
        self.precision = Precision(**(precision or PrecisionSpec()).model_dump())
        self.notes: list[str] = []
        self.meters: list[TextMeter] = []
        """Of the values that read whole texts."""
        self.coverages: list[Coverage] = []
        """Of the values that guide tokens across vocabularies."""
        self._streams: dict[tuple, Stream] = {}
        self._look_ahead(spec, token_guides)
        self.base: Stream | ServedBase
        self.served = None if serve is None else serve(self.networks)
        """The base, if it is served."""
        if self.served is not None:
            self.base = self.served
            served = self.served.network
            self.eos_ids, self.width = served.eos_ids, served.width
            self.reader = Reader(served.tokenizer, self.eos_ids, served.device)
            return
        network, adapter = self.networks.language_model(spec)
        self.base = self._stream(network, prompt_format(network, spec), adapter, "base")
        self.base.counting = True
        self.eos_ids = eos_ids(network)
        # Heads are often padded beyond the vocabulary; the ids there mean nothing, to the base or to a guide.
        self.width = min(network.width, max(network.tokenizer.get_vocab().values()) + 1)
        self.reader = Reader(network.tokenizer, self.eos_ids, network.device)

    def close(self) -> None:
        """Leave a served base; what is under way there is abandoned."""
        if self.served is not None:
            self.served.close()

    def told(self) -> list[str]:
        """Return what is to be said about the run's models, a sentence each."""
        return [*self.notes, *(self.served.notes() if self.served is not None else ())]

    def implicit(self, guide: Guide, for_tokens: bool) -> Value:
        """Return the sum of a guide's implicit values.

        Args:
            guide: the guide; it has at least one implicit value.
            for_tokens: whether it guides tokens, for which its vocabulary has to be the base's.
        """
        return weighted(
            [(self._implicit(spec, for_tokens), spec.weight) for spec in guide.implicit]
        )

    def explicit(self, specs: Sequence[ExplicitSpec], for_tokens: bool) -> Value:
        """Return the sum of explicit values, or rewards read as such; arguments as for `implicit`."""
        return weighted([(self._linked(spec, for_tokens), spec.weight) for spec in specs])

    def _implicit(self, spec: ImplicitSpec, for_tokens: bool) -> Value:
        if spec.model is not None:
            network, adapter = self.networks.language_model(spec.model)
            pair = [
                (network, prompted_format(network, spec.model, text), adapter)
                for text in (spec.tuned_prompt, spec.reference_prompt)
            ]
            name = spec.model.model
        else:
            pair = []
            for model in (spec.tuned, spec.reference):
                network, adapter = self.networks.language_model(model)
                pair.append((network, prompt_format(network, model), adapter))
            name = f"{spec.tuned.model} - {spec.reference.model}"
        networks = [network for network, _, _ in pair]
        readings = [self._reading(network, for_tokens) for network in networks]
        if AS_TEXT not in readings:
            tuned, reference = (
                self._stream(*member, role, reading)
                for member, role, reading in zip(pair, ROLES, readings, strict=True)
            )
            self._read_by(*networks)
            return ImplicitValue(name, tuned, reference)
        tuned, reference = (Stream(network, form, 1, adapter) for network, form, adapter in pair)
        tuned.role, reference.role = ROLES
        if not for_tokens:
            return RetokenisedImplicitValue(name, tuned, reference, self.reader)
        vocabularies = tuple(map(_bytes_of, networks))
        base = _bytes_of(self.base.network)
        value = ByteImplicitValue(name, tuned, reference, vocabularies, base, self.precision)
        self.coverages.append(value.coverage)
        return value

    def _linked(self, spec: ExplicitSpec, for_tokens: bool) -> Value:
        value = self._explicit(spec, for_tokens)
        return value if spec.link == "identity" else LinkedValue(value, spec.link)

    def _explicit(self, spec: ExplicitSpec, for_tokens: bool) -> Value:
        if spec.callable is not None:
            return self._metered(ScorerValue(CallableScorer(spec.callable), self.reader))
        name = spec.model.model
        try:
            network, _ = self.networks.value_model(spec.model)
        except NotDrivable:
            model, tokenizer = self.networks.classifier(spec.model)
            form = PromptFormat(tokenizer, spec.model.template, spec.model.system, spec.model.chat)
            together = 1 if self.networks.deterministic else BATCH
            scorer = RewardModel(name, model, tokenizer, form, together=together)
            return self._metered(ScorerValue(scorer, self.reader))
        head = spec.head
        if head == "auto" and 1 < network.width < len(network.tokenizer):
            what = f"a classifier with {network.width} labels, neither one value nor one for each token"
            raise ModelError(
                name,
                what,
                "name a reward model with one label, or a Python callable: module:function",
            )
        if head == "auto":
            head = "scalar" if network.width == 1 else "token-q"
        if head == "scalar" and network.width != 1:
            raise ModelError(
                name, f"a head with {network.width} outputs, not a scalar one", "head: token-q"
            )
        if head == "token-q" and network.width < len(network.tokenizer):
            what = f"a head with {network.width} outputs for {len(network.tokenizer)} tokens"
            raise ModelError(
                name, what, "head: scalar, or name a checkpoint with one output per token"
            )
        # Explicit values never share a stream: each commits its own candidates.
        stream = Stream(network, prompt_format(network, spec.model), 1)
        stream.role = "value"
        reading = AS_TEXT if spec.by_text else self._reading(network, False, head == "token-q")
        if reading is AS_TEXT:
            return RetokenisedScalarValue(name, stream, self.reader)
        stream.translation = reading
        self._read_by(network)
        if head == "scalar":
            return ScalarValue(name, stream)
        if reading is None:
            self.width = min(self.width, network.width)
        return TokenQValue(name, stream)

    def _metered(self, value: ScorerValue) -> ScorerValue:
        self.meters.append(value.meter)
        return value

    def _read_by(self, *guides: Network) -> None:
        """Let the base draw no id that a guide which reads its tokens has no embedding for."""
        for guide in guides:
            self.width = min(self.width, int(guide.model.get_input_embeddings().weight.shape[0]))
        if self.served is not None:
            self.served.network.width = self.width

    def _look_ahead(self, base: ModelSpec, guides: Sequence[ModelSpec]) -> None:
        """Refuse a token guide of another vocabulary before minutes go into loading weights.

        A model that cannot be had is left to the loading itself, which knows what to say about it.
        """
        reader = base.reader() if isinstance(base, BaseSpec) and base.served else base
        guides = [guide for guide in guides if reader is None or guide.model != reader.model]
        if self.vocabulary == "ids" or not guides or reader is None:
            return
        try:
            ours = self.networks.tokenizer(reader)
            found = [(guide, self.networks.tokenizer(guide)) for guide in guides]
        except ModelError:
            return
        for guide, tokenizer in found:
            match = compare(ours, tokenizer)
            if not (match.same if self.vocabulary == "same" else match.guidable):
                raise self._mismatch(f"{base.model} and {guide.model}", match)

    def _mismatch(self, where: str, match: VocabularyMatch) -> ModelError:
        if self.vocabulary == "same":
            what = f"vocabulary: same, but {match.sentence()}"
            return ModelError(where, what, "use a guide of the base's family, or vocabulary: auto")
        what = f"{match.sentence()}, and tokens cannot be guided by it"
        if match.refusal is not None:
            what = f"{what}: {match.refusal}"
        return ModelError(where, what, CHOICES)

    def _reading(
        self, guide: Network, for_tokens: bool, by_ids: bool = False
    ) -> Translation | str | None:
        """Return how `guide` reads what the base writes: its ids as they are (None), by a table of ids, or as text.

        Args:
            guide: a network of the guide.
            for_tokens: whether it is to guide tokens.
            by_ids: whether its outputs are one for each of the base's ids, so that text will not do.

        Raises:
            ModelError: the recipe or the mode wants something else.
        """
        base = self.base.network
        if self.served is not None and not self.served.by_ids:
            return self._unseen(guide, by_ids)
        if self.vocabulary == "bytes" and for_tokens:
            return AS_TEXT
        if guide.tokenizer is base.tokenizer and guide.width == base.width:
            return None
        # A head with one output has no width in tokens.
        width = guide.width if guide.width > 1 else None
        ends = (sorted(eos_ids(each)) for each in (base, guide))
        match = compare(base.tokenizer, guide.tokenizer, base.width, width, *ends)
        where = f"{base.name} and {guide.name}"
        if match.same and match.relation == "identical":
            return None
        if self.vocabulary == "ids":
            if not match.same:
                what = "ids are taken as they are, as published code does"
                self.notes.append(f"warning: {where}: {match.sentence()}; {what}")
            return None
        if self.vocabulary == "same" and not match.same:
            raise self._mismatch(where, match)
        if match.guide_ids is not None:
            if not match.same:
                self._tell(
                    f"{guide.name} has the tokens of {base.name} at other ids: a table says which"
                )
            return Translation(match.guide_ids, guide.device)
        if by_ids or (for_tokens and not match.guidable):
            raise self._mismatch(where, match)
        how = "it guides tokens by their bytes" if for_tokens else "it reads responses as text"
        self._tell(f"{guide.name} has another vocabulary than {base.name}: {how}")
        return AS_TEXT

    def _unseen(self, guide: Network, by_ids: bool) -> str:
        """Return how a guide reads a served base whose tokens are not told: as text, or not at all."""
        hint = "name the base's tokenizer: base.tokenizer, on a server that tells token ids"
        if by_ids:
            what = "has a value for each of the base's tokens, which the server does not tell"
            raise ModelError(guide.name, what, f"use a scalar head, or {hint}")
        if self.vocabulary in ("same", "ids"):
            what = f"vocabulary: {self.vocabulary}, but the server tells no tokens"
            raise ModelError(self.base.network.name, what, hint)
        return AS_TEXT

    def _tell(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _stream(
        self,
        network: Network,
        prompts: PromptFormat,
        adapter: str | None,
        role: str,
        translation: Translation | None = None,
    ) -> Stream:
        """Return the stream that reads this, under the role in which it was first asked for."""
        stream = Stream(network, prompts, 1, adapter, translation)
        stream.role = role
        return self._streams.setdefault(stream.key, stream)


def prompt_format(network: Network, spec: ModelSpec) -> PromptFormat:
    """Return how a model of a recipe is shown a prompt."""
    return PromptFormat(network.tokenizer, spec.template, spec.system, spec.chat)


def prompted_format(network: Network, spec: ModelSpec, text: str | None) -> PromptFormat:
    """Return the format of one side of a prompt pair: a template if it holds `{prompt}`, else a system prompt."""
    if text is None:
        return prompt_format(network, spec)
    chat = bool(network.tokenizer.chat_template) if spec.chat is None else spec.chat
    if PLACEHOLDER in text:
        return PromptFormat(network.tokenizer, text, spec.system, chat)
    return PromptFormat(network.tokenizer, spec.template, text, chat)


def _bytes_of(network: Network | ServedNetwork) -> ByteVocabulary:
    """Return the vocabulary of a network as bytes."""
    return byte_vocabulary(network.tokenizer, sorted(eos_ids(network)))


def weighted(parts: Sequence[tuple[Value, float]]) -> Value:
    """Return the weighted sum of values; a single one with weight 1 is itself."""
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    return WeightedSum([value for value, _ in parts], [weight for _, weight in parts])


def eos_ids(network: Network | ServedNetwork) -> frozenset[int]:
    """Return every id that ends a response: of the generation config, and the tokenizer's own."""
    if isinstance(network, ServedNetwork):
        return network.eos_ids
    found: set[int] = set()
    config: Any = getattr(network.model, "generation_config", None)
    for given in (getattr(config, "eos_token_id", None), network.tokenizer.eos_token_id):
        if given is not None:
            found.update(given if isinstance(given, (list, tuple)) else [given])
    return frozenset(int(token) for token in found)
