"""One stage of training, whichever network it trains: resuming, what is logged, when to stop."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainerCallback

from ivgcli.errors import ModelError, RecordError
from ivgcli.models.loading import chosen_device
from ivgcli.models.memory import keep_large_blocks
from ivgcli.recipes import Training
from ivgcli.records import TrainingFolder
from ivgcli.training.checkpoints import newest_whole
from ivgcli.training.processes import Processes

NOT_WRITTEN = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
"""Errors of the system that say that a file cannot be written."""


@dataclass
class Setting:
    """What all stages of a run share."""

    recipe: Training
    folder: TrainingFolder
    progress: Callable[..., Any]
    """Makes a progress bar from a stage's title, its steps, how many of them are done, and what they
    are called if not steps."""
    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    device: torch.device = field(init=False)
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.device = chosen_device(self.recipe.engine.device)
        if self.device.type == "cpu":
            keep_large_blocks()
        self.processes = Processes(self.device.type == "cpu")
        # Bars of libraries would be drawn over ours; their switches in the environment come too
        # late for what is imported already.
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16."""
        wanted = self.recipe.train.bf16
        if wanted is None:
            return self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return wanted


def watched(kind: type[Trainer]) -> type[Trainer]:
    """Return a trainer of that kind which stops at the first loss that is not a finite number.

    Left alone, a diverged run goes on to its end and saves weights that are not numbers.
    """

    class Watched(kind):  # type: ignore[valid-type,misc]
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            if not bool(torch.isfinite(loss)):
                raise diverged(self.state.global_step + 1)
            return loss

    Watched.__name__ = kind.__name__
    Watched.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return Watched


def diverged(step: int) -> ModelError:
    """Return the error of a run whose loss or weights are no numbers any more."""
    what = f"diverged: the loss of step {step} is not a finite number"
    hint = "lower learning_rate, or raise warmup_steps, and train again in a new --out"
    return ModelError("training", what, hint)


class Narration(TrainerCallback):
    """Shows how far a stage is, and writes what it logs to metrics.jsonl.

    Args:
        setting: what all stages share.
        stage: name of the stage.
        title: what to call it on the screen.
    """

    def __init__(self, setting: Setting, stage: str, title: str) -> None:
        self.setting = setting
        self.stage = stage
        self.title = title
        self._bar: Any = None
        self._text = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Start the bar."""
        bar = self.setting.progress(self.title, state.max_steps, state.global_step)
        self._bar = bar.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Count one step."""
        self._bar.advance(1, self._text)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any
    ) -> None:
        """Write one line of metrics; the summary at the end of training is left to the account."""
        if not logs or "loss" not in logs:
            return
        self._text = f"loss {float(logs['loss']):.4g}"
        numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        self.setting.folder.log(self.stage, {"step": state.global_step, **numbers})

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def train(trainer: Trainer, setting: Setting, stage: str, title: str) -> dict[str, Any]:
    """Train one stage to its end, from its newest whole checkpoint if there is one.

    Returns:
        What the stage came to: steps, seconds, and the step it went on from.

    Raises:
        ModelError: the loss, or a weight, is not a finite number.
        RecordError: a checkpoint cannot be written.
    """
    folder = setting.folder
    checkpoint, torn = newest_whole(folder.checkpoints(stage))
    setting.processes.wait()
    for each in torn:
        setting.warn(f"{each} is not whole, and is passed over")
        if setting.processes.first:
            shutil.rmtree(each, ignore_errors=True)
    begin = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    folder.forget(stage, begin)
    if begin:
        setting.say(f"{title}: resuming at step {begin}")
    setting.processes.wait()
    narration = Narration(setting, stage, title)
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    trainer.add_callback(narration)
    try:
        with saving(folder.checkpoints(stage)):
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        narration.stop()
    require_finite_weights(trainer.model, trainer.state.global_step)
    return {
        "steps": trainer.state.global_step,
        "from_step": begin,
        "seconds": round(result.metrics.get("train_runtime", 0.0), 1),
    }


def require_finite_weights(model: torch.nn.Module, step: int) -> None:
    """Refuse a network of which a weight is not a finite number."""
    for weight in model.parameters():
        if not bool(torch.isfinite(weight).all()):
            raise diverged(step)


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn the ways in which libraries fail to write weights into one sentence about `path`."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        what = f"cannot be written: {reason}"
        raise RecordError(str(path), what, "make room, then go on with --resume") from error


def _why_not_written(error: Exception) -> str | None:
    """Return why a file could not be written; None if the error is about something else.

    Of three ways to write, safetensors and torch tell of a failure in words of their own only.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower() if error.errno in NOT_WRITTEN else None
    text = str(error)
    for number in NOT_WRITTEN:
        if f"(os error {number})" in text or os.strerror(number) in text:
            return os.strerror(number).lower()
    torn = ("PytorchStreamWriter", "inline_container.cc")
    return "the file was cut off" if any(word in text for word in torn) else None
