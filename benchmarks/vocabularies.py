"""What guidance across vocabularies costs: `python -m benchmarks.vocabularies --base … --guide …`.

The guide decodes once with its own tokenizer, which is the base's, and once with each of the other
ones: the same layers, an embedding and head of the other size. The weight is 0, so that everyone
draws the same text, while all values are worked out as ever. Runs take turns (A B C A B C).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivgcli.decoding.engine import Engine
from ivgcli.decoding.search import Request
from ivgcli.models.memory import keep_large_blocks
from ivgcli.models.vocabulary import compare
from ivgcli.recipes import GenerateRecipe
from ivgcli.records import read_prompts
from ivgcli.workflows.assembly import Assembly
from ivgcli.workflows.fields import prompted
from ivgcli.workflows.generate import assemble, build_mode, sampling_limits


@dataclass
class Contestant:
    """One guide under measurement."""

    name: str
    recipe: GenerateRecipe
    assembly: Assembly
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    tokens: int = 0
    """Tokens drawn in the last run."""
    read: int = 0
    """Tokens that the tuned model read in the last run, prompts left out."""
    passes: int = 0
    """Its forward passes in the last run."""


def swapped(guide: Path, tokenizer: Path, folder: Path) -> Path:
    """Write a guide with another tokenizer and an embedding of its size, random and tied as before."""
    reader = AutoTokenizer.from_pretrained(tokenizer)
    for side in ("tuned", "reference"):
        model = AutoModelForCausalLM.from_pretrained(guide / side)
        spread = float(model.get_input_embeddings().weight.detach().std())
        torch.manual_seed(0)
        model.resize_token_embeddings(len(reader), mean_resizing=False)
        model.get_input_embeddings().weight.data.normal_(std=spread)
        for role in ("bos", "eos", "pad"):
            setattr(model.config, f"{role}_token_id", getattr(reader, f"{role}_token_id"))
            setattr(model.generation_config, f"{role}_token_id", None)
        model.save_pretrained(folder / side)
        reader.save_pretrained(folder / side)
    shutil.copy(guide / "guide.yaml", folder / "guide.yaml")
    return folder


def contestant(name: str, guide: Path, options: argparse.Namespace) -> Contestant:
    """Load everything and make an engine."""
    pair = {side: {"model": str(guide / side), "chat": False} for side in ("tuned", "reference")}
    recipe = GenerateRecipe.model_validate(
        {
            "base": {"model": options.base, "chat": False},
            "mode": "eft-i",
            "guide": {"implicit": pair},
            "token": {"weight": 0.0},
            "sampling": {"max_new_tokens": options.tokens, "temperature": 0.7, "top_p": 0.95},
            "engine": {"dtype": options.dtype, "device": options.device},
        }
    )
    assembly = assemble(recipe, None)
    mode = build_mode(recipe, assembly)
    limits = sampling_limits(recipe.sampling)
    engine = Engine(
        assembly.base,
        mode,
        limits,
        frozenset(),  # lengths are forced
        rows=options.rows,
        width=assembly.width,
        coverages=assembly.coverages,
    )
    return Contestant(name, recipe, assembly, engine)


def measure(each: Contestant, requests: list[Request]) -> None:
    """Decode everything once."""
    tuned = each.engine.values[0].streams()[0].network.ledger
    before = (tuned.tokens - tuned.prefilled, tuned.passes)
    began, worked = time.perf_counter(), time.process_time()
    outcomes = list(each.engine.run(requests))
    each.seconds.append(time.perf_counter() - began)
    each.processor.append(time.process_time() - worked)
    each.tokens = sum(len(outcome.winner.row.tokens) for outcome in outcomes)
    each.read = tuned.tokens - tuned.prefilled - before[0]
    each.passes = tuned.passes - before[1]


def report(contestants: list[Contestant]) -> None:
    """Print medians, and ratios of runs that stood side by side."""
    first = contestants[0]
    print(
        "| tokenizer of the guide | s | ratio | processor s | ratio | tokens read a token | passes a step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    steps = max(1, first.passes)
    for each in contestants:
        wall, work = (
            statistics.median(mine / theirs for mine, theirs in zip(ours, base, strict=True))
            for ours, base in (
                (each.seconds, first.seconds),
                (each.processor, first.processor),
            )
        )
        print(
            f"| {each.name} | {statistics.median(each.seconds):.1f} | {wall:.2f} "
            f"| {statistics.median(each.processor):.1f} | {work:.2f} "
            f"| {each.read / each.tokens:.2f} | {each.passes / steps:.2f} |"
        )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="model to steer")
    parser.add_argument(
        "--guide", required=True, type=Path, help="folder with the base's tokenizer"
    )
    parser.add_argument(
        "--tokenizers", nargs="+", type=Path, required=True, help="other tokenizers"
    )
    parser.add_argument("--prompts", default="recipes/movies/prompts-held-out.jsonl")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    keep_large_blocks()
    prompts = read_prompts(options.prompts)[: options.rows]
    requests = [Request(prompted(prompt)) for prompt in prompts]
    with tempfile.TemporaryDirectory() as scratch:
        guides = {f"the base's own ({options.guide.name})": options.guide}
        for number, tokenizer in enumerate(options.tokenizers):
            guides[tokenizer.name] = swapped(options.guide, tokenizer, Path(scratch, str(number)))
        contestants = [contestant(name, guide, options) for name, guide in guides.items()]
        for each in contestants[1:]:
            match = compare(
                each.assembly.base.network.tokenizer,
                each.engine.values[0].streams()[0].network.tokenizer,
            )
            print(f"{each.name}: {match.relation}, {match.guide_size:,} tokens, {match.sentence()}")
        for turn in range(options.repeats + 1):
            for each in contestants:
                measure(each, requests)
                if turn == 0:  # warm-up
                    each.seconds.clear()
                    each.processor.clear()
        report(contestants)


if __name__ == "__main__":
    main()
