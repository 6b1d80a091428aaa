"""One token ahead of every prefix of a response: what the base may say next, and what that is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ivgcli.errors import ModelError
from ivgcli.training.reading import padded
from ivgcli.training.scorer import PrefixScorer, plain_model
from ivgcli.training.sequences import Example

PACKED = 1024
"""Candidates that are packed behind a sequence at once; their mask is (S + 1024)² numbers a row."""

TOLERANCE = 1e-3
"""Largest difference to candidates that are appended one by one, relative to the hidden states' size."""

HALF_TOLERANCE = 4e-2
"""The same in narrower formats."""


@torch.inference_mode()
def next_distributions(
    model: Any,
    examples: Sequence[Example],
    candidates: int | None,
    batch_size: int = 8,
    width: int | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Return the most likely next tokens of a language model after every prefix of each response.

    Args:
        model: a frozen causal language model of transformers.
        examples: prompts and responses in its tokens.
        candidates: C, how many tokens; None for all of them.
        batch_size: sequences in a pass.
        width: number of tokens that count, where the model has outputs beyond them; unset: all.

    Returns:
        For each example the (n + 1, C) token ids and their float32 probabilities, which sum to 1
        over the C tokens, after 0..n tokens of its response.
    """
    device = model.get_input_embeddings().weight.device
    found: list[tuple[Tensor, Tensor]] = []
    for begin in range(0, len(examples), batch_size):
        batch = examples[begin : begin + batch_size]
        ids, mask = padded(batch, device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, example in enumerate(batch):
            after = logits[row, len(example.prompt_ids) - 1 : len(example.ids), :width].float()
            top = after.softmax(-1).topk(min(candidates or after.shape[-1], after.shape[-1]))
            probabilities = top.values / top.values.sum(-1, keepdim=True)
            found.append((top.indices.cpu(), probabilities.cpu()))
    return found


@contextlib.contextmanager
def as_decoded(scorer: nn.Module) -> Iterator[None]:
    """Read a network as decoding does, without gradient and without an adapter's dropout."""
    training = scorer.training
    scorer.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        scorer.train(training)


def packed_next_values(
    scorer: PrefixScorer,
    input_ids: Tensor,
    attention_mask: Tensor,
    reads: Tensor,
    candidates: Tensor,
    most: int = PACKED,
) -> Tensor:
    """Return a scalar head's value of each prefix with each candidate after it.

    Args:
        scorer: the network; call this inside `as_decoded`.
        input_ids: (B, S) prompts and responses, padded on the right.
        attention_mask: (B, S) 1 for a token, 0 for padding.
        reads: (B, T) position of each prefix's last token.
        candidates: (B, T, C) tokens.
        most: number of candidates of a row in one pass, but at least those of one prefix.

    Returns:
        (B, T, C) values.

    Raises:
        ModelError: the sequences are longer than the network's sliding window, which the mask of a
            packed pass does not show.
    """
    size = input_ids.shape[1]
    window = getattr(scorer.config.get_text_config(), "sliding_window", None)
    if window is not None and size >= window:
        what = f"sequences of {size} tokens, beyond its sliding window of {window}"
        raise ModelError("value", what, "a smaller data.max_length, or value.head: token-q")
    step = max(1, most // candidates.shape[2])
    dtype = next(scorer.parameters()).dtype
    found = torch.zeros(candidates.shape, device=reads.device)
    for begin in range(0, reads.shape[1], step):
        part = slice(begin, begin + step)
        inputs = packed(input_ids, attention_mask, reads[:, part], candidates[:, part], dtype)
        behind = torch.arange(size, inputs["input_ids"].shape[1], device=reads.device)
        values = scorer(reads=behind.expand(len(reads), -1), **inputs)
        found[:, part] = values.view(found[:, part].shape)
    return found


def packed(
    input_ids: Tensor, attention_mask: Tensor, reads: Tensor, candidates: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return a network's inputs in which candidates stand behind the sequence of their prefixes.

    Each candidate has the position after its prefix and attends to the prefix and to itself, so its
    hidden state is what it would be if it were appended to the prefix alone.

    Args:
        input_ids: (B, S) prompts and responses, padded on the right.
        attention_mask: (B, S) 1 for a token, 0 for padding.
        reads: (B, T) position of each prefix's last token.
        candidates: (B, T, C) tokens.
        dtype: format of the mask.

    Returns:
        (B, S + T·C) input_ids and position_ids, and the (B, 1, S + T·C, S + T·C) attention_mask as
        it is added to the attention's logits.
    """
    rows, size = input_ids.shape
    behind = reads.repeat_interleave(candidates.shape[2], dim=1)  # (B, T·C)
    total = size + behind.shape[1]
    place = torch.arange(total, device=reads.device)
    latest = torch.cat([place[:size].expand(rows, -1), behind], dim=1)
    seen = place <= latest[:, :, None]
    seen[:, :, :size] &= attention_mask[:, None, :].bool()
    # Padding sees itself, too: with nothing to attend to it would be NaN. Its output is not read.
    seen |= torch.eye(total, dtype=torch.bool, device=reads.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=reads.device)
    return {
        "input_ids": torch.cat([input_ids, candidates.flatten(1)], dim=1),
        "position_ids": torch.cat([latest[:, :size], behind + 1], dim=1),
        "attention_mask": mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None],
    }


def require_packable(scorer: PrefixScorer) -> None:
    """Compare the hidden states of a tiny packed pass with candidates appended one by one.

    A family that keeps a state instead of attending, or makes a mask of its own, would learn from
    wrong values in silence.

    Raises:
        ModelError: the two differ, or the network takes no packed pass.
    """
    network = plain_model(scorer.model)
    weight = network.get_input_embeddings().weight
    ids = torch.arange(3, 9, device=weight.device)[None] * 7 % min(weight.shape[0], 1000)
    reads, candidates = torch.tensor([[1, 4]], device=ids.device), ids[:, [[0, 2], [5, 1]]]
    inputs = packed(ids, torch.ones_like(ids), reads, candidates, weight.dtype)
    kind, hint = scorer.config.model_type, "value.head: token-q, or another network"
    with as_decoded(scorer):
        appended = [
            torch.cat([ids[:, : int(read) + 1], token[None, None]], dim=1)
            for read, pair in zip(reads[0], candidates[0], strict=True)
            for token in pair
        ]
        theirs = torch.cat(
            [network.base_model(input_ids=each).last_hidden_state[0, -1:] for each in appended]
        )
        try:
            ours = network.base_model(**inputs, use_cache=False).last_hidden_state[
                0, ids.shape[1] :
            ]
        except (TypeError, ValueError, RuntimeError, IndexError) as problem:
            what = f"a model of type {kind} takes no packed pass ({problem})"
            raise ModelError("value", what, hint) from problem
    difference = float((ours - theirs).float().norm() / theirs.float().norm())
    if not difference < (TOLERANCE if weight.dtype == torch.float32 else HALF_TOLERANCE):
        what = f"a packed pass of a model of type {kind} differs by {difference:.2g}"
        raise ModelError("value", what, hint)
