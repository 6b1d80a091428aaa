"""What guidance in bytes plans, beside its passes: `python -m benchmarks.planning --base … --guides …`.

The vocabularies are real, and the networks so small that they cost nothing on any device: what is left of a step is
told apart into planning and what a device does (passes, and distributions over a vocabulary). The base is a table of
which token follows which in the prompts, so that its candidates are those of a language model.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ivgcli.models.network import Network
from ivgcli.models.readings import Reading, read_all
from ivgcli.recipes import GenerateRecipe
from ivgcli.records import read_prompts
from ivgcli.values import Row
from ivgcli.values.coverage import Coverage
from ivgcli.values.implicit_bytes import ByteImplicitValue
from ivgcli.values.precision import Precision
from ivgcli.values.prefixes import PrefixReader
from ivgcli.workflows.assembly import Assembly
from ivgcli.workflows.fields import prompted

ON_THE_DEVICE = (
    (Network, "read"),
    (PrefixReader, "_weigh"),
    (PrefixReader, "_sums"),
    (Coverage, "outside"),
)
"""Passes, and arithmetic on whole distributions."""


class Followers:
    """Which token follows which: a bigram model of texts.

    Args:
        texts: ids of each.
        size: of the vocabulary.
    """

    def __init__(self, texts: Sequence[Sequence[int]], size: int) -> None:
        self.after: dict[int, Counter[int]] = defaultdict(Counter)
        every = torch.full((size,), 1e-3)
        for ids in texts:
            for one, other in itertools.pairwise(ids):
                self.after[one][other] += 1
                every[other] += 1
        self.every = every / every.sum()

    def logprobs(self, lasts: Sequence[int]) -> Tensor:
        """Return log p (B, V) of what follows each of some tokens, mixed with how often each token stands anywhere."""
        found = self.every.repeat(len(lasts), 1)
        for row, last in enumerate(lasts):
            seen = self.after[last]
            share = 5 / (5 + seen.total())
            counts = torch.tensor([*seen.values()], dtype=torch.float32)
            found[row] *= share
            found[row].index_add_(0, torch.tensor([*seen], dtype=torch.int64), counts * share / 5)
        return found.log()


def tiny(tokenizer: Any, seed: int, folder: Path) -> str:
    """Write a network of one narrow layer over a tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Stopwatch:
    """Processor seconds inside functions, those that they call of one another counted once."""

    def __init__(self, watched: Sequence[tuple[type, str]]) -> None:
        self.seconds = 0.0
        self._inside = False
        for owner, name in watched:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return function(*given, **named)
            self._inside, began = True, time.process_time()
            try:
                return function(*given, **named)
            finally:
                self._inside = False
                self.seconds += time.process_time() - began

        return timed


def begun(base: str, pair: dict[str, str], prompts: Sequence[Any]) -> tuple[Any, Any, list[Row]]:
    """Return the base's tokenizer, the pair's value and rows that have read their prompts."""
    plain = {side: {"model": model, "chat": False} for side, model in pair.items()}
    recipe = GenerateRecipe.model_validate(
        {"base": {"model": base, "chat": False}, "mode": "eft-i", "guide": {"implicit": [plain]}}
    )
    assembly = Assembly(recipe.base, "cpu", "float32")
    assembly.precision = Precision()
    value = assembly.implicit(recipe.guide, for_tokens=True)
    if not isinstance(value, ByteImplicitValue):
        raise SystemExit(f"{pair['tuned']}: it guides by ids, so nothing is planned in bytes")
    tokenizer = assembly.base.network.tokenizer
    rows = [Row(each, tokenizer(each.text)["input_ids"]) for each in prompts]
    for follower in (*value.streams(), value):
        follower.resize(len(rows))
    for stream in value.streams():
        ids = [stream.prompts.encode(row.prompt.text, None) for row in rows]
        read_all([Reading(stream, [*range(len(rows))], ids, prompt=True)])
    for number, row in enumerate(rows):
        value.start(number, row)
    return tokenizer, value, rows


@torch.inference_mode()
def measure(
    base: str, pair: dict[str, str], options: argparse.Namespace, watch: Stopwatch
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of planning, and of the rest, in each step."""
    known = read_prompts(options.prompts)
    tokenizer, value, rows = begun(base, pair, [prompted(each) for each in known[: options.rows]])
    followers = Followers(
        [tokenizer(prompted(each).text)["input_ids"] for each in known], len(tokenizer)
    )
    drawing = torch.Generator().manual_seed(0)
    planning, device = [], []
    for _ in range(options.steps):
        lasts = [(row.tokens or row.prompt_ids)[-1] for row in rows]
        logprobs = followers.logprobs(lasts)
        candidates = logprobs.topk(options.candidates).indices
        watch.seconds, began = 0.0, time.process_time()
        value.next_values([*range(len(rows))], rows, candidates, logprobs)
        planning.append(1000 * (time.process_time() - began - watch.seconds))
        device.append(1000 * watch.seconds)
        drawn = torch.multinomial(logprobs.exp(), 1, generator=drawing)[:, 0]
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.tokens.append(token)
    return planning, device


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="tokenizer of the base")
    parser.add_argument("--guides", nargs="+", required=True, help="tokenizers of guides")
    parser.add_argument("--prompts", default="recipes/movies/prompts-train.jsonl")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch(ON_THE_DEVICE)
    print("| guide | planning, ms a step: first | first half | second half | passes |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        base = tiny(AutoTokenizer.from_pretrained(options.base), 0, Path(scratch, "base"))
        for number, guide in enumerate(options.guides):
            tokenizer = AutoTokenizer.from_pretrained(guide)
            pair = {
                side: tiny(tokenizer, seed, Path(scratch, f"{side}-{number}"))
                for seed, side in enumerate(("tuned", "reference"), 1)
            }
            planning, device = measure(base, pair, options, watch)
            half = len(planning) // 2
            print(
                f"| {Path(guide).name} | {planning[0]:.1f} "
                f"| {statistics.median(planning[1:half]):.1f} "
                f"| {statistics.median(planning[half:]):.1f} | {statistics.median(device):.1f} |"
            )


if __name__ == "__main__":
    main()
