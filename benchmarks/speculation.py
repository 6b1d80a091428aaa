"""What guessing ahead gains for few rows: `python -m benchmarks.speculation`.

Plain sampling of the base, guided decoding token by token, and guided decoding with guesses take
turns in one process, on one prompt (or `--rows` samples of it) with forced lengths. The networks
have random weights, so the guide knows nothing of the base: how often its guesses are right is
forced instead. It reads and draws as ever, and then the token that it guesses is the one that
guided decoding draws there with the given probability, and another one otherwise. The responses
are checked to be the same with and without guesses.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlamaConfig

import ivgcli.decoding.speculation
from benchmarks.machine import processor_name
from benchmarks.ours import packed, stream
from benchmarks.shapes import from_config, perturbed, word_tokenizer
from ivgcli.decoding import Limits, Mode, TokenGuidance
from ivgcli.decoding.draws import step_keys, stream_key
from ivgcli.decoding.engine import Engine
from ivgcli.decoding.sampling import Drawn, draw
from ivgcli.decoding.search import Request
from ivgcli.models.memory import keep_large_blocks
from ivgcli.models.slots import ATTENTION
from ivgcli.values import Prompted
from ivgcli.values.implicit import ImplicitValue

VOCABULARY = 49152
SHAPES = {
    # hidden, MLP, layers, heads, heads of keys and values
    "tiny": (64, 128, 4, 4, 2),
    "36m": (320, 1024, 16, 5, 5),
    "135m": (576, 1536, 30, 9, 3),
    "360m": (960, 2560, 32, 15, 5),
    "1.7b": (2048, 8192, 24, 32, 32),
}


@dataclass
class Contestant:
    """One way of decoding, and what its runs took."""

    name: str
    engine: Engine
    acceptance: float | None = None
    """Forced share of right guesses; None: nothing is guessed."""
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    """Of the latest run, by sample."""


def network(shape: str, options: argparse.Namespace) -> torch.nn.Module:
    """Build a Llama of a shape, with tied embeddings as SmolLM2 has them."""
    hidden, mlp, layers, heads, pairs = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=pairs,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return from_config(config)


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Build the networks once, and an engine for each way of decoding."""
    torch.manual_seed(0)
    base, reference = network(options.base, options), network(options.guide, options)
    models = base, perturbed(reference), reference
    for model in models:
        model.to(device=options.device, dtype=getattr(torch, options.dtype)).eval()
        model.requires_grad_(False)
        model.set_attn_implementation(ATTENTION)
        packed(model).attach()
    tokenizer = word_tokenizer(options.vocabulary)
    prompt = torch.randint(2, options.vocabulary, (options.prompt,)).tolist()
    limits = Limits(options.tokens, options.temperature)

    def contestant(name: str, speculate: int | str, acceptance: float | None) -> Contestant:
        streams = [stream(model, tokenizer, [prompt]) for model in models]
        streams[0].counting = True
        guidance = TokenGuidance(ImplicitValue("pair", *streams[1:]))
        mode = Mode("base") if name == "base" else Mode("eft-i", guidance)
        engine = Engine(streams[0], mode, limits, frozenset(), options.rows, speculate=speculate)
        return Contestant(name, engine, acceptance)

    found = [contestant("base", "off", None), contestant("guided", "off", None)]
    for acceptance in options.acceptance:
        name = f"guided, {acceptance:.0%} right"
        found.append(contestant(name, options.speculate, acceptance))
    return found


def forced(
    responses: dict[int, list[int]], acceptance: float
) -> Callable[[Tensor, Limits, Tensor, Tensor], Drawn]:
    """Return a draw that costs what `draw` costs, and is right in the given share of places."""
    known: dict[tuple[int, int], int] = {}
    coin = random.Random(0)
    for sample, tokens in responses.items():
        key = stream_key(0, "0", sample, 0)
        words = step_keys([key] * len(tokens), range(len(tokens)), torch.device("cpu")).tolist()
        for word, token in zip(words, tokens, strict=True):
            right = coin.random() < acceptance
            known[word[0], word[1]] = token if right else token ^ 1

    def draw_known(logits: Tensor, limits: Limits, keys: Tensor, vocabulary: Tensor) -> Drawn:
        drawn = draw(logits, limits, keys, vocabulary)
        tokens = [known[word[0], word[1]] for word in keys.tolist()]
        return Drawn(torch.tensor(tokens, device=logits.device), drawn.logprobs)

    return draw_known


def measure(each: Contestant, rows: int, truth: dict[int, list[int]]) -> None:
    """Decode once; guesses come from `truth`."""
    door = ivgcli.decoding.speculation
    original = door.draw
    if each.acceptance is not None:
        door.draw = forced(truth, each.acceptance)
    try:
        requests = [Request(Prompted("0", "0"), sample) for sample in range(rows)]
        began, worked = time.perf_counter(), time.process_time()
        outcomes = list(each.engine.run(requests))
        each.seconds.append(time.perf_counter() - began)
        each.processor.append(time.process_time() - worked)
    finally:
        door.draw = original
    each.tokens = {done.request.sample: done.winner.row.tokens for done in outcomes}


def report(found: list[Contestant], tokens: int) -> None:
    """Print medians, and ratios of runs that stood side by side."""
    base, plain = found[:2]
    print(
        "| decoding | s | processor s | tokens/s | speed: base = 1 | guided = 1 | guesses kept | tokens a round |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for each in found:
        ratios = [
            statistics.median(
                theirs / ours for theirs, ours in zip(other.processor, each.processor, strict=True)
            )
            for other in (base, plain)
        ]
        guessed = each.engine.guessed()
        right = rate = "–"
        if guessed is not None:
            right, rate = f"{guessed.acceptance:.0%}", f"{guessed.tokens / guessed.rounds:.2f}"
        seconds, work = statistics.median(each.seconds), statistics.median(each.processor)
        print(
            f"| {each.name} | {seconds:.2f} | {work:.2f} | {tokens / seconds:.1f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {right} | {rate} |"
        )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--base", choices=SHAPES, default="360m")
    add("--guide", choices=SHAPES, default="36m")
    add("--vocabulary", type=int, default=VOCABULARY)
    add("--rows", type=int, default=1, help="samples of the prompt that decode at once")
    add("--prompt", type=int, default=64, help="tokens of the prompt")
    add("--tokens", type=int, default=48, help="tokens of every response")
    add("--temperature", type=float, default=1.0)
    add("--acceptance", type=float, nargs="*", default=[0.6, 0.8, 0.9])
    add("--speculate", default="auto", help="auto, or a number of tokens")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    if options.speculate != "auto":
        options.speculate = int(options.speculate)
    return options


def main() -> None:
    """Run the comparison."""
    options = arguments()
    torch.set_num_threads(options.threads)
    keep_large_blocks()
    found = contestants(options)
    sizes = [stream.network.flops_per_token / 2e6 for stream in found[1].engine.streams[:2]]
    where = processor_name() if options.device == "cpu" else torch.cuda.get_device_name()
    print(
        f"base of {sizes[0]:.0f}M weights, guides of {sizes[1]:.0f}M, {options.dtype}, {where}, "
        f"{options.threads} threads, torch {torch.__version__}; {options.rows} rows of "
        f"{options.prompt} + {options.tokens} tokens, --speculate {options.speculate}, "
        f"{options.repeats} repetitions"
    )
    for number in range(options.repeats + 1):  # the first round warms up
        for each in found:
            measure(each, options.rows, found[1].tokens)
            if each.acceptance is not None:
                assert each.tokens == found[1].tokens, "guessing ahead has changed a response"
            if number == 0:
                each.seconds.clear()
                each.processor.clear()
    report(found, options.rows * options.tokens)


if __name__ == "__main__":
    main()
