"""Runs of `ivg` that are killed or starved, forked from one process that has loaded the libraries.

Usage: python -m tests.forks. It reads one order a line, an object with `arguments`, `log` (where
stdout and stderr go) and a fault, runs `ivg ARGUMENTS` in a child of its own, and prints how that
ended: its exit code, or minus the signal that killed it.

Faults: `kill` [stage, step] dies by SIGKILL when a step is done, before its checkpoint is written;
`tear` [stage, step] dies in the middle of writing that checkpoint; `limit` N lets no file grow
beyond N bytes; `signal` [stage, step, number] is sent a signal when a step is done. With `ranks` N
there are N children, which know of each other as a launcher such as torchrun tells them.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Forks:
    """The parent of such runs, started on first use."""

    def __init__(self) -> None:
        self._parent: subprocess.Popen[str] | None = None

    def run(self, log: Path, arguments: Sequence[object], **fault: Any) -> tuple[int, str]:
        """Return how `ivg ARGUMENTS` ended under a fault, and what it said."""
        if self._parent is None:
            self._parent = subprocess.Popen(
                [sys.executable, "-m", "tests.forks"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        order = {"arguments": list(map(str, arguments)), "log": str(log), **fault}
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline()), log.read_text()

    def close(self) -> None:
        """End the parent."""
        if self._parent is not None:
            assert self._parent.stdin is not None
            assert self._parent.stdout is not None
            self._parent.stdin.close()
            self._parent.wait()
            self._parent.stdout.close()


def main() -> None:
    """Load the libraries, then fork a child for each order."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # as every command sets it
    import torch

    torch.set_num_threads(1)  # a child of a process with threads has none of them
    from ivgcli.cli import main as ivg
    from ivgcli.training import report

    report.draw_figure = undrawn
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        children = [begin(order, rank, ivg) for rank in range(order.get("ranks", 1))]
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(ends[0], flush=True)


def undrawn(*given: Any) -> list[Path]:
    """Stand in for the figure, which takes as long to draw as a tiny network to train."""
    return []


def begin(order: dict[str, Any], rank: int, ivg: Callable[[], None]) -> int:
    """Fork a child that carries out an order, and return its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "ranks" in order:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(order["ranks"]))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(order["port"]))
    arrange(order)
    sys.argv = ["ivg", *order["arguments"]]
    ivg()
    sys.exit(0)


def arrange(order: dict[str, Any]) -> None:
    """Prepare the fault of an order."""
    if "limit" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    if "kill" in order:
        signalled(*order["kill"], signal.SIGKILL)
    if "signal" in order:
        # Whoever starts the tests in the background may have them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signalled(*order["signal"])
    if "tear" in order:
        torn(*order["tear"])


def signalled(stage: str, step: int, number: int) -> None:
    """Send this process a signal at the end of a step."""
    from ivgcli.training.stages import Narration

    count = Narration.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        count(self, args, state, control, **rest)
        if (self.stage, state.global_step) == (stage, step):
            os.kill(os.getpid(), number)

    Narration.on_step_end = on_step_end  # type: ignore[method-assign]


def torn(stage: str, step: int) -> None:
    """Die when half of a checkpoint's optimiser is on the disk."""
    import torch

    save = torch.save

    def half(content: Any, place: Any, *rest: Any, **more: Any) -> None:
        save(content, place, *rest, **more)
        if str(place).endswith(f"{stage}/checkpoint-{step}/optimizer.pt"):
            os.truncate(place, os.path.getsize(place) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half


if __name__ == "__main__":
    main()
