"""How long a user waits before anything happens: `python -m benchmarks.startup [--shape smollm2]`.

`ivg --help` is to answer within 0.3 s; for a response, the libraries are imported, the model is read from
disk and the prompt is read before its first token can come.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shapes import SHAPES, build_networks

HELP_GOAL = 0.3
"""Seconds within which `ivg --help` is to answer."""
PROMPT = "w5 w6 w7 w8"


def seconds_of(command: Sequence[str], repeat: int) -> float:
    """Return the shortest of `repeat` runs of a command, in seconds.

    Raises:
        subprocess.CalledProcessError: it failed; what it said is in the error's `stderr`.
    """
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        found.append(time.perf_counter() - start)
    return min(found)


def help_seconds(repeat: int = 10) -> float:
    """Return the shortest time of `ivg --help`, the start of Python included."""
    return seconds_of([sys.executable, "-m", "ivgcli", "--help"], repeat)


def write_model(folder: Path, shape: str, device: str, dtype: str) -> None:
    """Write a base network of random weights and its tokenizer."""
    import torch

    networks = build_networks(shape, device=device, dtype=getattr(torch, dtype), guided=False)
    networks.base.save_pretrained(folder)
    networks.tokenizer.save_pretrained(folder)


def command_seconds(folder: Path, device: str, dtype: str, repeat: int = 2) -> float:
    """Return the shortest time of a whole `ivg generate` of one token."""
    words = f"-m ivgcli generate --quiet --base {folder} --device {device} --dtype {dtype}"
    more = ["--max-new-tokens", "1", "--prompt", PROMPT]
    return seconds_of([sys.executable, *words.split(), *more], repeat)


def stages(folder: Path, device: str, dtype: str) -> dict[str, float]:
    """Return the seconds of loading, of the first token after it, and of another prompt's first token."""
    from ivgcli.decoding import Limits, Mode
    from ivgcli.decoding.engine import Engine
    from ivgcli.decoding.search import Request
    from ivgcli.recipes import ModelSpec
    from ivgcli.values import Prompted
    from ivgcli.workflows.assembly import Assembly

    start = time.perf_counter()
    spec = ModelSpec(model=str(folder), chat=False)
    assembly = Assembly(spec, device=device, dtype=dtype)
    found = {"load": time.perf_counter() - start}
    engine = Engine(assembly.base, Mode(), Limits(max_new_tokens=1), frozenset(), rows=1)
    for name in ("first token", "another prompt's"):
        start = time.perf_counter()
        list(engine.run([Request(Prompted(name, PROMPT))]))
        found[name] = time.perf_counter() - start
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeat", type=int, default=10, help="runs of --help")
    options = parser.parse_args(argv)
    answered = help_seconds(options.repeat)
    print(f"ivg --help: {answered:.2f} s, best of {options.repeat} (goal {HELP_GOAL} s)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder, options.shape, options.device, options.dtype)
        whole = command_seconds(folder, options.device, options.dtype)
        print(f"ivg generate, one token, {options.shape}: {whole:.2f} s, best of 2")
        for name, seconds in stages(folder, options.device, options.dtype).items():
            print(f"  {name}: {seconds:.3f} s")


if __name__ == "__main__":
    main()
