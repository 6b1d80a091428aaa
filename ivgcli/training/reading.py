"""What networks say of every prefix of a response, read in one pass over each: for reports, not for decoding.

A response of n tokens has the prefixes t = 0 … n, and so n + 1 values, in the tokens and with the
conventions that decoding reads them by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ivgcli.errors import ModelError
from ivgcli.recipes.guide import Link
from ivgcli.recipes.training import Head
from ivgcli.training.sequences import Example
from ivgcli.values.linked import linked

BLOCK = 256
"""Positions whose head outputs are held at once: 256 of a vocabulary of 128k are 131 MB."""


AT_ONCE = 16
"""Responses that go through a network at once where nothing is trained."""


def ignored(count: int) -> None:
    """Show no progress."""


def explicit_values(
    scorer: Any,
    head: Head,
    examples: Sequence[Example],
    batch_size: int,
    link: Link | None = None,
    advance: Callable[[int], object] = ignored,
) -> list[Tensor]:
    """Return the explicit value of every prefix of every response.

        scalar:   V(x, y≤t) = z(h_t), the head's output at the prefix's last token
        token-q:  V(x, y≤t) = z(h_{t−1})[y_t], and V(x, ∅) = 0

    Args:
        scorer: a sequence classifier with a `score` head on a decoder.
        head: what the head's outputs are.
        examples: N responses to prompts of at least one token.
        batch_size: responses that go through the network at once.
        link: what is done to the outputs; None: nothing. It applies to the empty response, too.
        advance: told how many responses have been read, after each batch.

    Returns:
        N tensors (n + 1,) in float32 on the CPU, in the order given.

    Raises:
        ModelError: a value is not a finite number.

    Reference:
        Liu et al. (2024), IVG, eq. 7 and 10; Han et al. (2024), VAS.
    """
    found: dict[int, Tensor] = {}
    with _frozen(scorer):
        for indices in _batches(examples, batch_size):
            ids, mask = padded([examples[index] for index in indices], scorer.device)
            hidden = scorer.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
            for row, index in enumerate(indices):
                example = examples[index]
                states = hidden[row, len(example.prompt_ids) - 1 : len(example.ids)]
                outputs = _read_out(scorer.score, head, states, example.response_ids)
                values = linked(outputs, link or "identity").cpu()
                found[index] = _require_finite(scorer, example, values)
            advance(len(indices))
    return [found[index] for index in range(len(examples))]


def _read_out(score: Any, head: Head, states: Tensor, response: Sequence[int]) -> Tensor:
    """Return outputs (n + 1,) from the hidden states (n + 1, H) after each prefix."""
    if head == "scalar":
        at: Tensor = score(states)[:, 0].float()
        return at
    tokens = torch.tensor(response, dtype=torch.int64, device=states.device)
    parts = [states.new_zeros(1, dtype=torch.float32)]
    for begin in range(0, len(response), BLOCK):
        place = slice(begin, min(begin + BLOCK, len(response)))
        parts.append(score(states[place]).gather(1, tokens[place, None])[:, 0].float())
    return torch.cat(parts)


def implicit_values(
    tuned: Any,
    reference: Any,
    examples: Sequence[Example],
    batch_size: int,
    advance: Callable[[int], object] = ignored,
) -> list[Tensor]:
    """Return the implicit value of every prefix of every response.

        V(x, y≤t) = Σ_{i≤t} log π_tuned(y_i | x, y<i) − log π_reference(y_i | x, y<i),  V(x, ∅) = 0

    Args:
        tuned: a causal language model.
        reference: the one that it was tuned from, on the same token ids.
        examples: N responses to prompts of at least one token.
        batch_size: responses that go through a network at once; their logits (B, S, V), S the longest
            response, are held until the next batch.
        advance: told how many responses have been read, after each batch.

    Returns:
        N tensors (n + 1,) in float32 on the CPU, in the order given.

    Raises:
        ModelError: a value is not a finite number.

    Reference:
        Liu et al. (2024), IVG, eq. 9; Rafailov et al. (2023), DPO, for the whole response.
    """
    found: dict[int, Tensor] = {}
    with _frozen(tuned), _frozen(reference):
        for indices in _batches(examples, batch_size):
            batch = [examples[index] for index in indices]
            of_tuned, of_reference = (_logprobs(model, batch) for model in (tuned, reference))
            for row, index in enumerate(indices):
                steps = of_tuned[row].double() - of_reference[row].double()
                values = torch.cat([steps.new_zeros(1), steps.cumsum(0)]).float()
                found[index] = _require_finite(tuned, examples[index], values)
            advance(len(indices))
    return [found[index] for index in range(len(examples))]


def _logprobs(model: Any, batch: Sequence[Example]) -> list[Tensor]:
    """Return the log-probability (n,) of each response's tokens, on the CPU."""
    ids, mask = padded(batch, model.device)
    length = ids.shape[1]
    first = min(len(example.prompt_ids) for example in batch) - 1
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=length - first
    ).logits
    # A family without that argument gives the logits of every position.
    first = length - logits.shape[1]
    found = []
    for row, example in enumerate(batch):
        begin = len(example.prompt_ids) - 1 - first
        places = logits[row, begin : begin + len(example.response_ids)].float()
        tokens = torch.tensor(example.response_ids, dtype=torch.int64, device=places.device)
        found.append(places.log_softmax(-1).gather(1, tokens[:, None])[:, 0].cpu())
    return found


@contextlib.contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Read a model without gradients and dropout, and leave it in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _batches(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Yield indices of examples of like length; the longest first, so that memory fails at once if at all."""
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].ids))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def padded(batch: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (B, S) int64, padded on the right, where a causal network cannot see it."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = 1
    return ids.to(device), mask.to(device)


def _require_finite(model: Any, example: Example, values: Tensor) -> Tensor:
    """Return values, or refuse a network that has none to give."""
    if not bool(torch.isfinite(values).all()):
        place = int((~torch.isfinite(values)).nonzero()[0])
        what = f'the value of "{example.id}" after {place} tokens is {float(values[place])}'
        raise ModelError(str(model.name_or_path), what, "lower learning_rate and train again")
    return values
