"""G8: from the command line to the first token."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.parts import Run
from benchmarks.startup import HELP_GOAL, command_seconds, help_seconds, stages, write_model


def start(run: Run) -> None:
    """Time `ivg --help`, a whole command of one token, and its stages inside this process."""
    answered = help_seconds(2 if run.tiny else 10)
    run.note(name="ivg --help", seconds=answered, goal=HELP_GOAL)
    device, dtype = str(run.device), str(run.dtype).removeprefix("torch.")
    for shape in ("tiny",) if run.tiny else ("gpt2", "gpt2-xl"):
        with run.kept(shape), tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_model(folder, shape, device, dtype)
            for name, seconds in stages(folder, device, dtype).items():
                run.note(name=name, shape=shape, seconds=seconds)
            if not run.tiny:
                whole = command_seconds(folder, device, dtype)
                run.note(name="ivg generate, one token", shape=shape, seconds=whole)
