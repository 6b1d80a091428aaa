"""One loaded transformer, driven through slots: packed tokens in, hidden states and head outputs out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ivgcli.errors import ModelError
from ivgcli.models.adapters import counting_for, mixable
from ivgcli.models.fixed import HEIGHT, Blocked, fix_heights
from ivgcli.models.lanes import Lanes
from ivgcli.models.logprobs import picked
from ivgcli.models.shards import Shards, divided, whole_outputs
from ivgcli.models.slots import ATTENTION, Segment, SlotCache

PROBE_TOKENS = 6
PROBE_TOLERANCE = 1e-3
"""Largest root-mean-square difference, relative to the outputs' spread, to a model's own forward in float32."""

HALF_TOLERANCE = 4e-2
"""The same in narrower formats: bfloat16 costs 0.012 on SmolLM2-135M, where attention scaled 20 % wrong costs 0.055."""


@dataclass
class Ledger:
    """What a network has been asked to do; tests assert on it and reports print it."""

    passes: int = 0
    """Forward passes."""
    tokens: int = 0
    """Tokens read in them."""
    prefilled: int = 0
    """Tokens of prompts among those."""
    reread: int = 0
    """Tokens read a second time because a retokenised text changed before them."""
    peeked: int = 0
    """Candidate tokens evaluated without being kept."""
    rejected: int = 0
    """Guessed tokens read and taken back."""


class NotDrivable(ModelError):
    """A model that cannot be read token by token through slots; whole texts may still go through it."""


@dataclass
class Network:
    """A decoder with a head, its tokenizer, and the adapters that may be switched on over it.

    `head` is the output embedding of a language model (D = V) or the value head of a sequence classifier (D = 1 or V).
    """

    name: str
    model: nn.Module
    tokenizer: Any
    head: nn.Module
    width: int
    """D, outputs per position."""
    adapters: Any = None
    """The PeftModel around `model` when adapters are loaded."""
    ledger: Ledger = field(default_factory=Ledger)
    height: int | None = None
    """Rows of the blocks in which it works, where results must not depend on the batch; None: all at once."""
    shards: Shards | None = None
    """The processes that hold the weights between them; None: they are whole here."""

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where packed tokens have to be."""
        return self.model.get_input_embeddings().weight.device

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, prompt and response together; a very large number where it has no limit."""
        config = self.model.config.get_text_config()
        return int(
            getattr(config, "max_position_embeddings", None)
            or getattr(config, "n_positions", None)
            or 10**9
        )

    @functools.cached_property
    def flops_per_token(self) -> int:
        """Return 2·N, the arithmetic of a forward pass for each token.

        N counts the weights that are multiplied: all but the input embeddings, the head, and of a
        mixture of experts those that a token meets. Attention to the tokens before it, 4·d·layers
        for each of them, is left out: it is small until the context is as long as 6·d.

        Reference:
            Kaplan et al. (2020), Scaling Laws for Neural Language Models, section 2.1.
        """
        backbone: Any = self.model.base_model
        weights = backbone.num_parameters(exclude_embeddings=True)
        config: Any = self.model.config.get_text_config()
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        if experts:
            within = sum(
                p.numel() for name, p in backbone.named_parameters() if ".experts." in name
            )
            weights -= within * (experts - config.num_experts_per_tok) // experts
        return 2 * (int(weights) + int(self.head.weight.numel()))

    @contextlib.contextmanager
    def variant(self, adapter: str | None) -> Iterator[None]:
        """Switch `adapter` on (None: all off) for the passes inside."""
        if self.adapters is None:
            yield
        elif adapter is None:
            with self.adapters.disable_adapter():
                yield
        else:
            if self.adapters.active_adapter != adapter:
                self.adapters.set_adapter(adapter)
            yield

    def mixes(self, adapter: str | None) -> bool:
        """Return whether one pass can have an adapter on for some of its tokens and off for the others."""
        return adapter is not None and mixable(self.adapters, adapter)

    @contextlib.contextmanager
    def variants(
        self, segments: Sequence[Segment], adapters: Sequence[str | None]
    ) -> Iterator[None]:
        """Switch an adapter on, for the passes inside, for those segments alone that name it."""
        named = sorted({adapter for adapter in adapters if adapter is not None})
        with self.variant(named[0] if named else None):
            if len(set(adapters)) == 1:
                yield
                return
            on = [adapter is not None for adapter in adapters]
            tokens = [segment.tokens for segment in segments]
            with counting_for(self.adapters, named[0], tokens, on):
                yield

    def read(
        self,
        tokens: Tensor,
        segments: Sequence[Segment | Lanes],
        adapters: Sequence[str | None] = (None,),
    ) -> Tensor:
        """Run one packed pass and return the last hidden state (N, H) of every token.

        Args:
            tokens: (N,) token ids, the segments' tokens one after another.
            segments: where each run of tokens belongs; their caches are written.
            adapters: the adapter of each segment, None for the plain model, or one for all of them. Two different ones
                have to be None and one that `mixes`.
        """
        if len(adapters) < len(segments):
            adapters = [*adapters] * len(segments)
        positions = (
            torch.cat([segment.positions for segment in segments])
            if len(segments) > 1
            else segments[0].positions
        )
        self.ledger.passes += 1
        self.ledger.tokens += tokens.shape[0]
        with self.variants(segments, adapters):
            output = self.model.base_model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                segments=list(segments),
            )
        return output.last_hidden_state[0]

    def outputs(self, hidden: Tensor) -> Tensor:
        """Return the head's outputs (…, D) in float32 for hidden states (…, H); the caller may change them.

        On a GPU, products of half-precision weights are summed and returned in float32: a difference of two models'
        logits, 16 to 32 each, would else be one of numbers rounded to 0.06 to 0.13.
        """
        if self.height is not None:
            return Blocked(self._outputs, self.height)(hidden)
        return self._outputs(hidden)

    def fix_heights(self) -> None:
        """Let no result of a row depend on what is read beside it, adapters that are loaded included."""
        self.height = HEIGHT["cpu" if self.device.type == "cpu" else "cuda"]
        fix_heights(self.name, self.adapters or self.model, self.height)

    def _outputs(self, hidden: Tensor) -> Tensor:
        head = self.head
        if divided(head):
            flat = whole_outputs(head, hidden.flatten(0, -2), _widens(hidden))
            return flat.view(*hidden.shape[:-1], -1).float()
        if type(head) is nn.Linear and head.bias is None and _widens(hidden):
            flat = torch.mm(hidden.flatten(0, -2), head.weight.t(), out_dtype=torch.float32)
            return flat.view(*hidden.shape[:-1], -1)
        return head(hidden).float()

    def agreed(self, numbers: Tensor) -> Tensor:
        """Return numbers that all processes with this network have to have alike; alone, the numbers themselves."""
        return numbers if self.shards is None else self.shards.agreed(numbers)

    def require_drivable(self) -> None:
        """Compare a tiny pass through slots with the model's own forward.

        A family that scales its logits, masks differently or ignores the attention registry would decode nonsense in
        silence; the comparison costs two passes over six tokens and needs no list of families.

        Raises:
            ModelError: the two differ, or the model does not take a packed pass.
        """
        kind = self.model.config.model_type
        hint = "use a decoder such as llama, mistral, qwen2, qwen3 or gpt2"
        limit = min(int(self.model.config.get_text_config().vocab_size), 1000)
        tokens = torch.arange(3, 3 + PROBE_TOKENS, device=self.device) * 7 % limit
        half = PROBE_TOKENS // 2
        cache = SlotCache(self.layers, slots=3, capacity=PROBE_TOKENS)
        kept = Ledger(**vars(self.ledger))
        try:
            with torch.inference_mode():
                rows = []
                for begin, stop in ((0, half), (half, PROBE_TOKENS)):
                    segment = Segment(cache, [1], [begin], [stop - begin], self.device)
                    rows.append(self.read(tokens[begin:stop], [segment]))
                ours = self.outputs(torch.cat(rows))
                theirs = self._plain(tokens)
            if cache.store is None:
                raise NotImplementedError("it has an attention of its own")
        except (KeyError, TypeError, AttributeError, NotImplementedError, ValueError) as problem:
            raise NotDrivable(
                self.name, f"a model of type {kind} cannot be driven ({problem})", hint
            ) from problem
        finally:
            self.ledger = kept
        spread = theirs.std().clamp_min(1e-6)
        # Not the largest one: a single logit of 30 moves by 0.1 when bfloat16 rounds it the other way.
        difference = float((ours - theirs).square().mean().sqrt() / spread)
        wide = self.model.get_input_embeddings().weight.dtype in (torch.float32, torch.float64)
        if not difference < (PROBE_TOLERANCE if wide else HALF_TOLERANCE):
            what = f"outputs through slots differ by {difference:.2g} of their spread"
            raise NotDrivable(self.name, f"a model of type {kind} cannot be driven: {what}", hint)

    def _plain(self, tokens: Tensor) -> Tensor:
        """Return the outputs (N, D) of the model's own forward with transformers' own attention."""
        wrapped = self.model
        wrapped.set_attn_implementation(
            "sdpa" if getattr(wrapped, "_supports_sdpa", True) else "eager"
        )
        try:
            with self.variant(None):
                if hasattr(wrapped, "score") or self.head is not wrapped.get_output_embeddings():
                    hidden = wrapped.base_model(
                        input_ids=tokens[None], use_cache=False
                    ).last_hidden_state
                    return self.outputs(hidden[0])
                return wrapped(input_ids=tokens[None], use_cache=False).logits[0].float()
        finally:
            wrapped.set_attn_implementation(ATTENTION)


def _widens(hidden: Tensor) -> bool:
    """Return whether a product of such numbers can be had in a wider format."""
    half = hidden.dtype in (torch.float16, torch.bfloat16)
    return half and hidden.is_cuda and hasattr(torch.ops.aten.mm, "dtype")


def token_logprobs(
    network: Network,
    hidden: Tensor,
    tokens: Tensor,
    arrange: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    block: int = 256,
) -> Tensor:
    """Return log p(token) (N,) in float64 of the tokens that follow the hidden states, without ever holding (N, V).

    Args:
        network: a language model.
        hidden: (N, H) hidden state before each token.
        tokens: (N,) the tokens.
        arrange: chooses and orders columns of the outputs (N, D) before they are normalised.
        block: rows per matrix product; 256 rows of a 50k vocabulary are 50 MB.
    """
    parts = []
    for begin in range(0, tokens.shape[0], block):
        logits = arrange(network.outputs(hidden[begin : begin + block]))
        parts.append(picked(logits, tokens[begin : begin + block]))
    return torch.cat(parts).double() if parts else hidden.new_zeros(0, dtype=torch.float64)
