"""Check and time everything on a GPU that is at hand for a while: `python -m benchmarks.gpu --out DIR`.

The tests that need a GPU run first, then the parts, most telling first. Every result is written to
DIR/results.jsonl as soon as it is known, everything said to DIR/log.txt, and tables to DIR/summary.md at
the end. A part that fails or runs out of its share of the time leaves its traceback in the log, and the
next one begins. With `--shape tiny --device cpu` the same script takes less than a minute on a processor.
"""

from __future__ import annotations

import argparse
import datetime
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.parts import OutOfTime, Run, free, shown
from benchmarks.parts.across import across
from benchmarks.parts.runs import large, one_prompt, sampling, small_to_large
from benchmarks.parts.sameness import same_text
from benchmarks.parts.starting import start
from benchmarks.parts.steps import ceilings, stage, steps
from ivgcli.models.memory import keep_large_blocks

ROOT = Path(__file__).resolve().parents[1]
AT_THE_END = 10.0
"""Seconds kept back for the summary."""
NO_TESTS = 5
"""How pytest ends where nothing is marked."""


@dataclass(frozen=True)
class Part:
    """One part of the script."""

    title: str
    work: Callable[[Run], None]
    weight: float
    """Its share of the time, relative to the other parts'."""


PARTS = {
    "G0": Part("Ceilings, and what the host spends on a layer", ceilings, 1),
    "G1": Part("One decoding step, by rows", steps, 4),
    "G2": Part("GPT-2 steers GPT-2 XL: W = K = 4, L = 5", small_to_large, 4),
    "G3": Part("7B steered by a 7B pair and an 8B value: W = K = 2, L = 30", large, 5),
    "G4": Part("Plain sampling and best-of-16", sampling, 4),
    "G5": Part("One prompt", one_prompt, 2),
    "G6": Part("One stage of a 70B network", stage, 1.5),
    "G7": Part("The same responses in other company", same_text, 1.5),
    "G8": Part("From the command line to the first token", start, 1.5),
    "G9": Part("A guide with another vocabulary", across, 2),
}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside after so many seconds; kernels that are under way finish first."""

    def stop(_signal: int, _frame: object) -> None:
        raise OutOfTime(f"its {seconds:.0f} s are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_tests(run: Run, seconds: float) -> None:
    """Run the tests that need a GPU and keep what they say; without a GPU they would all be skipped."""
    run.part = "tests"
    if run.device.type != "cuda":
        run.note(name="pytest -m gpu", left_out="no GPU")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests"]
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        run.log(said.decode(errors="replace") if isinstance(said, bytes) else said)
        run.note(name="pytest -m gpu", failed=f"more than {seconds:.0f} s")
        return
    run.log(ended.stdout + ended.stderr)
    told = {"exit_code": ended.returncode, "says": ended.stdout.strip()[-80:]}
    if ended.returncode not in (0, NO_TESTS):
        told["failed"] = "see the log"
    run.note(name="pytest -m gpu", **told)


def run_parts(run: Run, names: Sequence[str], end: float) -> None:
    """Run parts in order, each within its share of the time that is left."""
    for place, name in enumerate(names):
        run.part, part = name, PARTS[name]
        waiting = sum(PARTS[other].weight for other in names[place:])
        seconds = (end - time.monotonic()) * part.weight / waiting
        run.deadline = time.monotonic() + seconds
        run.log(f"\n{name}: {part.title}, up to {seconds:.0f} s")
        began = time.monotonic()
        try:
            with run.kept(name), limited(seconds):
                part.work(run)
        except OutOfTime as late:
            run.note(name=name, stopped=str(late))
        free(run.device)
        run.log(f"{name} took {time.monotonic() - began:.0f} s")


def summary(run: Run, command: str, machine: dict[str, object]) -> str:
    """Return all results as Markdown: one table for each part, a column for each field it has."""
    now = datetime.datetime.now(datetime.timezone.utc)
    lines = ["# Results", "", f"`{command}`, {now:%Y-%m-%d %H:%M} UTC", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items() if value is not None]
    for name in dict.fromkeys(record["part"] for record in run.records):
        title = PARTS[name].title if name in PARTS else "Tests on the device"
        records = [record for record in run.records if record["part"] == name]
        columns = list(dict.fromkeys(key for record in records for key in record if key != "part"))
        lines += ["", f"## {name}: {title}", "", "| " + " | ".join(columns) + " |"]
        lines.append("| " + " | ".join("---" for _ in columns) + " |")
        for record in records:
            cells = ("" if record.get(key) is None else shown(record[key]) for key in columns)
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for results, log and summary")
    add("--minutes", type=float, default=9.0, help="after which everything is over")
    add("--only", help="parts, with commas between them: G1,G2")
    add("--shape", choices=("full", "tiny"), default="full")
    add("--device", default="cuda")
    add("--dtype", choices=("bfloat16", "float32"), help="default: bfloat16 on a GPU")
    add("--threads", type=int, help="of the processor")
    add("--no-tests", action="store_true", help="leave the tests out")
    add(
        "--tokenizers",
        type=Path,
        nargs="+",
        default=(),
        help="folders of published tokenizers for G9, the base's first",
    )
    options = parser.parse_args(argv)
    options.names = options.only.split(",") if options.only else list(PARTS)
    for name in options.names:
        if name not in PARTS:
            parser.error(f"--only: no part {name}: choose from {', '.join(PARTS)}")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here: add --device cpu --shape tiny")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; 1 if a test or a part failed."""
    options = arguments(argv)
    began = time.monotonic()
    end = began + 60 * options.minutes - AT_THE_END
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_large_blocks()
    device = torch.device(options.device)
    default = "bfloat16" if device.type == "cuda" else "float32"
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.out,
        device,
        getattr(torch, options.dtype or default),
        tiny=options.shape == "tiny",
        tokenizers=options.tokenizers,
    )
    command = " ".join(["python -m benchmarks.gpu", *(argv if argv is not None else sys.argv[1:])])
    machine = describe_machine(device, run.dtype)
    run.log(f"{command}\n{machine}")
    try:
        if not options.no_tests:
            run_tests(run, (end - began) / 4)
        run_parts(run, options.names, end)
    finally:
        text = summary(run, command, machine)
        (options.out / "summary.md").write_text(text, encoding="utf-8")
    return int(any("failed" in record for record in run.records))


if __name__ == "__main__":
    sys.exit(main())
