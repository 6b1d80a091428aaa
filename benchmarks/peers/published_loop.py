"""The published loop of weak-to-strong search and emulated fine-tuning, on today's transformers.

Written anew to cost what the published code costs, step by step:

- one prompt at a time; the prompt is repeated W·K times before it is read, so it is read W·K times;
- logits of every prompt position, a cache that grows by concatenation with every token;
- the host waits after every token to learn whether all rows have finished;
- a nucleus filter (a full sort of the vocabulary) whenever `top_p` is given, even if it is 1;
- after each chunk the rows become text, prompt and response are tokenised again (once for each
  guide), and both guides read the whole text without a cache, with a float32 log-softmax of every
  position;
- survivors are copied by reordering the whole cache, rows that stay in place included.

Two departures make results comparable and neither makes it slower: `temperature=0` takes the most
probable token, and a row that reached its length is not given an end-of-sequence token for its last
valuation.

Reference:
    Zhou et al. (2024), Weak-to-Strong Search, chunk-level beam search; Mitchell et al. (2024), An
    Emulator for Fine-tuning Large Language Models using Small Language Models. The published code
    is github.com/ZHZisZZ/weak-to-strong-search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from benchmarks.contest import SEARCHES, Networks, Outcome, Round, Settings
from benchmarks.cost import Reading, counted
from benchmarks.peers.published_values import (
    as_text,
    explicit_values,
    implicit_values,
    response_texts,
    trimmed,
)


@dataclass
class Stats:
    """What decoding one prompt took."""

    readings: dict[str, Reading]
    """Forward passes and tokens read, by network: base, tuned, reference, value."""
    row_tokens: int = 0
    """Tokens drawn over all rows."""
    rounds: list[Round] = field(default_factory=list)
    """Every selection of a chunk search, in order; empty for the other modes."""


class CachedNetwork:
    """A network and the cache of the rows it has read so far."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.cache = DynamicCache(config=network.config)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Read what is new in `ids` (R, T) and return the logits (R, V) of the token after it."""
        mask = torch.ones_like(ids)
        positions = mask.cumsum(-1) - 1
        past = self.cache.get_seq_length()
        output = self.network(
            input_ids=ids[:, past:],
            attention_mask=mask,
            position_ids=positions[:, past:],
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[:, -1, :]


class GuidedNetwork:
    """A base and the guides that tilt it, each with a cache of its own; weight 0 leaves the guides out."""

    def __init__(
        self,
        base: PreTrainedModel,
        tuned: PreTrainedModel,
        reference: PreTrainedModel,
        weight: float,
    ) -> None:
        guides = (tuned, reference) if weight else ()
        self.followed = [CachedNetwork(network) for network in (base, *guides)]
        self.weight = weight

    def next_logits(self, ids: Tensor) -> Tensor:
        """Return z_base + weight · (z_tuned − z_reference) (R, V) after `ids` (R, T)."""
        # One network after another, summed in the networks' own precision, as published.
        z_base, *z_guides = (network.next_logits(ids) for network in self.followed)
        if not z_guides:
            return z_base
        z_tuned, z_reference = z_guides
        return z_base + self.weight * (z_tuned - z_reference)

    def reorder(self, parents: Tensor) -> None:
        """Follow rows (R,) that were copied from `parents`."""
        for network in self.followed:
            network.cache.reorder_cache(parents)


class Finish:
    """Which rows go on, asked of the device after every token as the published loop does."""

    def __init__(self, ids: Tensor, max_new_tokens: int, eos_ids: Sequence[int] | None) -> None:
        self.longest = ids.shape[1] + max_new_tokens
        self.eos = None if eos_ids is None else torch.tensor(list(eos_ids), device=ids.device)
        self.unfinished = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        self.ended = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    def append(self, ids: Tensor, tokens: Tensor, pad_id: int) -> Tensor:
        """Append one token (R,) to every row of `ids` (R, T), padding on finished rows."""
        if self.eos is not None:
            tokens = tokens * self.unfinished + pad_id * (1 - self.unfinished)
            self.ended |= torch.isin(tokens, self.eos) & self.unfinished.bool()
        ids = torch.cat([ids, tokens[:, None]], dim=-1)
        stop = self.ended | (ids.shape[1] >= self.longest)
        self.unfinished = self.unfinished & ~stop
        return ids

    def everywhere(self) -> bool:
        """Tell whether no row goes on; this waits for the device."""
        return bool(self.unfinished.max() == 0)

    def reorder(self, parents: Tensor) -> None:
        """Follow rows (R,) that were copied from `parents`."""
        self.unfinished, self.ended = self.unfinished[parents], self.ended[parents]


def warpers(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """List the filters of the published loop: each one runs if its value is not zero or None."""
    chosen = LogitsProcessorList()
    if temperature:
        chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen


def draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw one token (R,) per row of filtered logits (R, V); the most probable at temperature 0."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = logits.softmax(dim=-1)
    return torch.multinomial(probabilities, num_samples=1, generator=generator).squeeze(1)


@torch.no_grad()
def sample(
    next_logits: Callable[[Tensor], Tensor],
    prompt_ids: Sequence[int],
    *,
    device: torch.device,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    eos_ids: Sequence[int] | None,
) -> list[int]:
    """Draw one response from the logits (1, V) that `next_logits` gives for tokens (1, T)."""
    generator = torch.Generator(device).manual_seed(seed)
    filters = warpers(temperature, top_k, top_p)
    ids = torch.tensor([list(prompt_ids)], device=device)
    finish = Finish(ids, max_new_tokens, eos_ids)
    while not finish.everywhere():
        tokens = draw(filters(ids, next_logits(ids)), temperature, generator)
        ids = finish.append(ids, tokens, pad_id=0)
    return ids[0, len(prompt_ids) :].tolist()


def plain(
    base: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
) -> tuple[list[int], Stats]:
    """Draw one response from the base network alone; arguments as in `eft_i`."""
    with counted({"base": base}) as readings:
        response = sample(
            CachedNetwork(base).next_logits,
            prompt_ids,
            device=base.device,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos_ids=eos_ids,
        )
    return response, Stats(readings, row_tokens=len(response))


def eft_i(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    reference: PreTrainedModel,
    prompt_ids: Sequence[int],
    *,
    weight: float = 1.0,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
) -> tuple[list[int], Stats]:
    """Draw one response under token guidance: z = z_base + weight · (z_tuned − z_reference).

    Args:
        base: the network that writes.
        tuned: the guide after tuning, with the base's vocabulary.
        reference: the guide before tuning, with the base's vocabulary.
        prompt_ids: tokens of the prompt, at least one.
        weight: multiplies the difference of the guides' logits.
        max_new_tokens: longest response, at least 1.
        temperature: divides the combined logits; 0 takes the most probable token.
        top_k: tokens that may be drawn; 0 or None admits all.
        top_p: probability mass that may be drawn; None admits all, 1 admits all after a sort.
        seed: seed of the draws.
        eos_ids: tokens that end a response; None forces the full length.

    Returns:
        The response tokens and what they took.
    """
    with counted({"base": base, "tuned": tuned, "reference": reference}) as readings:
        response = sample(
            GuidedNetwork(base, tuned, reference, weight).next_logits,
            prompt_ids,
            device=base.device,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            eos_ids=eos_ids,
        )
    return response, Stats(readings, row_tokens=len(response))


@torch.no_grad()
def cbs_i(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    *,
    beam_width: int = 4,
    successors: int = 4,
    chunk_length: int = 5,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 0,
    eos_ids: Sequence[int] | None = None,
    value: PreTrainedModel | None = None,
    weight: float = 0.0,
) -> tuple[list[int], Stats]:
    """Search chunk by chunk for the response with the largest log p_tuned − log p_reference.

    With `value`, a sequence classifier ranks the chunks instead.

    Finished rows are valued again in every round and, as long as they lead, copied to K rows each.

    Args:
        base: the network that writes.
        tuned: the guide after tuning.
        reference: the guide before tuning, with the same tokenizer as the tuned one.
        tokenizer: turns rows into text and text into the guides' tokens.
        prompt_ids: tokens of the prompt, at least one.
        beam_width: W, beams kept after each chunk, at least 1.
        successors: K, continuations of each beam, at least 1.
        chunk_length: L, tokens between two selections, at least 1.
        max_new_tokens: longest response, at least 1.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: tokens that may be drawn; 0 or None admits all.
        top_p: probability mass that may be drawn; None admits all, 1 admits all after a sort.
        seed: seed of the draws.
        eos_ids: tokens that end a response; None forces the full length.
        value: network with one output per text, which replaces the implicit value in the ranking.
        weight: multiplies the guides' tilt of every token's logits; 0 draws from the base alone.

    Returns:
        The response tokens of the best row of the last selection, and what they took.
    """
    networks = {"base": base, "tuned": tuned, "reference": reference}
    if value is not None:
        networks["value"] = value
    with counted(networks) as readings:
        stats = Stats(readings)
        follower = GuidedNetwork(base, tuned, reference, weight)
        generator = torch.Generator(base.device).manual_seed(seed)
        filters = warpers(temperature, top_k, top_p)
        start = len(prompt_ids)
        ids = torch.tensor([list(prompt_ids)], device=base.device)
        ids = ids.repeat(beam_width * successors, 1)
        finish = Finish(ids, max_new_tokens, eos_ids)
        prompt_text = as_text(tokenizer, prompt_ids)
        remaining, done = chunk_length, False
        while not done:
            logits = filters(ids, follower.next_logits(ids))
            tokens = draw(logits, temperature, generator)
            ids = finish.append(ids, tokens, pad_id=tokenizer.pad_token_id)
            stats.row_tokens += ids.shape[0]
            remaining -= 1
            done = finish.everywhere()
            if remaining > 0 and not done:
                continue
            remaining = chunk_length
            candidates = [trimmed(row[start:], eos_ids) for row in ids.tolist()]
            texts = response_texts(tokenizer, prompt_ids, prompt_text, candidates, finish.ended)
            if value is None:
                values = implicit_values(
                    tuned, reference, tokenizer, prompt_text, texts, finish.ended.tolist()
                )
            else:
                values = explicit_values(value, tokenizer, prompt_text, texts)
            survivors = torch.topk(values, beam_width).indices
            stats.rounds.append(Round(candidates, values.tolist(), survivors.tolist()))
            parents = survivors.repeat(successors)
            ids = ids[parents]
            finish.reorder(parents)
            follower.reorder(parents)
            done = finish.everywhere()
    last = stats.rounds[-1]
    return last.candidates[last.survivors[0]], stats


def run_published(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Decode prompts one after another with the published loop, as a contestant.

    In the modes base and eft-i it draws one sequence per prompt whatever `settings.samples` says:
    the published loop has one row there, and its rate per row does not change with their number.
    """
    responses, row_tokens = [], 0
    shared = {
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
    }
    for index, prompt in enumerate(prompts):
        shared["seed"] = settings.seed + index
        shared["max_new_tokens"] = settings.length(index)
        if mode in SEARCHES:
            guided = {"value": networks.value, "weight": settings.weight} if mode == "ivg" else {}
            response, stats = cbs_i(
                networks.base,
                networks.tuned,
                networks.reference,
                networks.tokenizer,
                prompt,
                beam_width=settings.beam_width,
                successors=settings.successors,
                chunk_length=settings.chunk_length,
                **guided,
                **shared,
            )
        elif mode == "eft-i":
            response, stats = eft_i(
                networks.base,
                networks.tuned,
                networks.reference,
                prompt,
                weight=settings.weight,
                **shared,
            )
        else:
            response, stats = plain(networks.base, prompt, **shared)
        responses.append(response)
        row_tokens += stats.row_tokens
    return Outcome(responses, row_tokens)
