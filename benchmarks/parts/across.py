"""G9: what a guide with another vocabulary costs beside the same guide with the base's own.

Tokenizers are published ones where folders are given, else trained here on film reviews. The weights
are random, so the base writes words in no order; the values are worked out as for any text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks import shapes, vocabularies
from benchmarks.parts import Run
from ivgcli.decoding.search import Request
from ivgcli.records import read_prompts
from ivgcli.workflows.fields import prompted

MOVIES = Path(__file__).resolve().parents[2] / "recipes" / "movies"
GOAL = 1.3
"""How many times the guide with the base's own vocabulary another one may take."""
SIZES = {"trained-16k": 16384, "trained-4k": 4096}


def across(run: Run) -> None:
    """Time both guides in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, *others = run.tokenizers or train_tokenizers(folder, run.tiny)
        write_networks(run, folder, AutoTokenizer.from_pretrained(base))
        rows, tokens = (4, 6) if run.tiny else (64, 64)
        options = argparse.Namespace(
            base=str(folder / "base"),
            tokens=tokens,
            rows=rows,
            device=str(run.device),
            dtype=str(run.dtype).removeprefix("torch."),
        )
        guides = {f"the base's own ({base.name})": folder / "guide"}
        for place, other in enumerate(others):
            target = folder / str(place)
            guides[other.name] = vocabularies.swapped(folder / "guide", other, target)
        everyone = [vocabularies.contestant(name, guide, options) for name, guide in guides.items()]
        prompts = read_prompts(str(MOVIES / "prompts-held-out.jsonl"))[:rows]
        requests = [Request(prompted(prompt)) for prompt in prompts]
        for turn in range(2 if run.tiny else 4):
            for each in everyone:
                vocabularies.measure(each, requests)
                if turn == 0:  # warm-up
                    each.seconds.clear()
        for each in everyone:
            ratios = [
                mine / own for mine, own in zip(each.seconds, everyone[0].seconds, strict=True)
            ]
            run.note(
                name=each.name,
                rows=rows,
                tokens=tokens,
                seconds=[round(second, 4) for second in each.seconds],
                times_the_own=statistics.median(ratios),
                goal=GOAL,
                tokens_read_per_token=each.read / each.tokens,
                passes=each.passes,
            )


def write_networks(run: Run, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a base and a guide pair with the base's tokenizer: GPT-2 XL and GPT-2 in shape."""
    size = len(tokenizer)
    base = shapes.gpt2(64, 2, 4, size) if run.tiny else shapes.gpt2(1600, 48, 25, size)
    guide = shapes.gpt2(64, 1, 4, size) if run.tiny else shapes.gpt2(768, 12, 12, size)
    with torch.device(run.device):
        torch.manual_seed(0)
        reference = shapes.from_config(guide, run.dtype)
        networks = {
            "base": shapes.from_config(base, run.dtype),
            "guide/reference": reference,
            "guide/tuned": shapes.perturbed(reference),
        }
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "guide" / "guide.yaml").write_text(
        "implicit: {tuned: tuned, reference: reference}\n", encoding="utf-8"
    )


def train_tokenizers(folder: Path, tiny: bool) -> list[Path]:
    """Train byte-level tokenizers of two sizes on the film reviews and write them."""
    lines = (MOVIES / "pairs-train.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in (lines[:200] if tiny else lines)]
    texts = [pair[side] for pair in pairs for side in ("chosen", "rejected")]
    found = []
    for name, size in SIZES.items():
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size // 8 if tiny else size,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        core.train_from_iterator(texts, trainer)
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
        )
        wrapped.save_pretrained(folder / name)
        found.append(folder / name)
    return found
