"""One network decoded the way gpt-fast does it: fixed addresses, one captured step, no wait for the host.

Keys and values lie in one tensor of the final size, every step attends to all of it behind a mask, and
the draw (top-k, then the race of exponentials) stays on the device. On a GPU the step is a CUDA graph; with
`compiled` it goes through the compiler first. Every prompt is read once and its rows start from copies, and
rows of different lengths need no padding, which gpt-fast does not have: the peer is at least as fast.

In the mode eft-i, base, tuned and reference decode as many rows one after another: three such decoders
side by side, the least that a guided decoder made of them could take.

Reference:
    PyTorch Labs (2023), gpt-fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from benchmarks.contest import Networks, Outcome, Settings

ATTENTION = "benchmark_static_rows"
"""Name under which the attention function is registered with transformers."""
MULTIPLE = 64
"""The rows' capacity is rounded up to this, which the fused kernels want of a mask."""


class StaticRows:
    """Keys and values of R rows at fixed addresses, and where each row stands."""

    def __init__(self, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        self.capacity = -(-capacity // MULTIPLE) * MULTIPLE
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.index = torch.arange(rows, device=device)
        self.columns = torch.arange(self.capacity, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        """(R,) position of the token that is read next."""
        self.mask = torch.zeros(rows, 1, 1, self.capacity, device=device, dtype=dtype)
        """Added to the scores of one step: 0 up to the row's position."""

    def look(self) -> None:
        """Compute the mask of the coming step, once for all layers."""
        hidden = self.columns > self.positions[:, None]
        self.mask.zero_().masked_fill_(hidden[:, None, None], torch.finfo(self.mask.dtype).min)

    def store(self, layer: int, key: Tensor, value: Tensor, copies: int) -> None:
        """Keep a prompt's keys and values (P, kv heads, T, width), `copies` rows for each prompt."""
        for kept, new in ((self.keys, key), (self.values, value)):
            if len(kept) == layer:
                rows, heads, _, width = new.shape
                kept.append(new.new_zeros(rows * copies, heads, self.capacity, width))
            kept[layer][:, :, : new.shape[2]] = new.repeat_interleave(copies, 0)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float | None
    ) -> Tensor:
        """Append one position per row and attend: query (R, heads, 1, width) to the same shape."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.index, :, self.positions] = key[:, :, 0]
        values[self.index, :, self.positions] = value[:, :, 0]
        rows, heads, _, width = query.shape
        # Query heads of one group stand side by side, so that keys need not be repeated for them.
        folded = query.view(rows, keys.shape[1], heads // keys.shape[1], width)
        mask = self.mask.expand(-1, -1, folded.shape[2], -1)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(rows, heads, 1, width)


def static_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    static: StaticRows | None = None,
    copies: int = 1,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend within a prompt and keep it, or attend to everything kept.

    Args:
        static: the rows' keys and values.
        copies: rows per prompt, in a pass over prompts.
    """
    if query.shape[2] > 1:
        static.store(module.layer_idx, key, value, copies)
        out = F.scaled_dot_product_attention(
            *(query, key, value),
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        out = static.attend(module.layer_idx, query, key, value, scaling)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, static_attention)


def draw(logits: Tensor, settings: Settings) -> Tensor:
    """Draw one token (R, 1) per row of logits (R, V) without waiting for the device."""
    if settings.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    scaled = logits / settings.temperature
    if settings.top_k:
        least = scaled.topk(settings.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probabilities = scaled.softmax(-1)
    return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1, keepdim=True)


class Decoder:
    """One network, its static rows and one step.

    Args:
        network: a model whose attention is `ATTENTION` while it is used.
        prompts: token ids of each prompt, at least two tokens each.
        settings: samples, length and sampling.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
    ) -> None:
        self.network = network
        self.settings = settings
        longest = max(len(prompt) for prompt in prompts)
        rows = len(prompts) * settings.samples
        capacity = longest + settings.max_new_tokens
        self.rows = StaticRows(rows, capacity, network.device, network.dtype)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=network.device)
        self._prefill(prompts)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read every prompt once, padded on the right, and draw the first token of every row."""
        longest = max(2, *(len(prompt) for prompt in prompts))
        device, copies = self.network.device, self.settings.samples
        padded = [list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        hidden = self.network.base_model(
            input_ids=torch.tensor(padded, device=device),
            position_ids=torch.arange(longest, device=device)[None],
            use_cache=False,
            static=self.rows,
            copies=copies,
        ).last_hidden_state
        ends = torch.tensor([len(prompt) for prompt in prompts], device=device)
        last = hidden[torch.arange(len(prompts), device=device), ends - 1]
        self._advance(last.repeat_interleave(copies, 0))
        # What padding has left behind is written over before any row can see it.
        self.rows.positions.copy_(ends.repeat_interleave(copies))

    def step(self) -> None:
        """Read the latest token of every row and draw the next one, in place."""
        self.rows.look()
        hidden = self.network.base_model(
            input_ids=self.tokens,
            position_ids=self.rows.positions[:, None],
            use_cache=False,
            static=self.rows,
        ).last_hidden_state
        self._advance(hidden[:, 0])
        self.rows.positions += 1

    def _advance(self, hidden: Tensor) -> None:
        """Draw the token after hidden states (R, H)."""
        logits = self.network.get_output_embeddings()(hidden).float()
        self.tokens.copy_(draw(logits, self.settings))

    def captured(self, step: Callable[[], None]) -> Callable[[], None]:
        """Return the step as a CUDA graph; the rows stand afterwards where they stood before."""
        tokens, positions = self.tokens.clone(), self.rows.positions.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
                self.tokens.copy_(tokens)
                self.rows.positions.copy_(positions)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        self.tokens.copy_(tokens)
        self.rows.positions.copy_(positions)
        return graph.replay

    def decode(self, backend: str | None) -> list[list[int]]:
        """Return the responses of every row, of full length; the step goes through `backend` if one is named."""
        drawn = [self.tokens.clone()]
        step: Callable[[], None] = self.step
        if backend is not None:
            step = torch.compile(step, backend=backend, fullgraph=True)
        if self.tokens.is_cuda and self.settings.max_new_tokens > 1:
            step = self.captured(step)
        for _ in range(self.settings.max_new_tokens - 1):
            step()
            drawn.append(self.tokens.clone())
        return torch.cat(drawn, dim=1).tolist()


@torch.inference_mode()
def decode_static(
    network: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    backend: str | None = None,
) -> list[list[int]]:
    """Draw `settings.samples` responses of full length for every prompt.

    Args:
        network: a language model.
        prompts: token ids of each prompt.
        settings: how to decode; top-p is left out, as gpt-fast has none.
        backend: compiler of the step (`inductor`); None captures or runs it as it is.
    """
    before = network.config._attn_implementation
    network.set_attn_implementation(ATTENTION)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            return Decoder(network, prompts, settings).decode(backend)
    finally:
        network.set_attn_implementation(before)


def run_compiled(
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    backend: str | None = None,
) -> Outcome:
    """Decode all prompts at once; in the mode eft-i the three networks in turn.

    The responses are the base's own in either mode.

    Raises:
        NotImplementedError: the mode ranks chunks.
    """
    if mode not in ("base", "eft-i"):
        raise NotImplementedError(f"it has no {mode}")
    if settings.top_p < 1:
        raise NotImplementedError("it has no top-p")
    responses = decode_static(networks.base, prompts, settings, backend)
    if mode == "eft-i":
        for guide in (networks.tuned, networks.reference):
            decode_static(guide, prompts, settings, backend)
    return Outcome(settings.cut(responses, mode), settings.row_tokens(len(prompts), mode))
