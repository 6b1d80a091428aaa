"""One stage of training, whichever network it trains: its arguments, resuming, what is logged, when to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ivgcli.errors import IvgError, ModelError, RecipeError, RecordError
from ivgcli.models.loading import chosen_device
from ivgcli.recipes import OptimiserSpec, Training
from ivgcli.records import TrainingFolder
from ivgcli.training.checkpoints import newest_whole
from ivgcli.training.processes import Processes

Arguments = TypeVar("Arguments", bound=TrainingArguments)

MOST_AT_ONCE = 8
"""Rows that go through a device at once where the recipe does not say."""

SETTLED = {"output_dir", "seed", "data_seed", "report_to", "bf16", "use_cpu", "save_steps"}
SETTLED |= {"logging_steps", "per_device_train_batch_size", "gradient_accumulation_steps"}
SETTLED |= {"learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps"}
SETTLED |= {"weight_decay", "max_grad_norm", "gradient_checkpointing", "activation_checkpointing"}
SETTLED |= {"beta", "loss_type", "loss_weights", "label_smoothing", "max_length"}
"""Arguments that the recipe sets by keys of its own."""


@dataclass
class Setting:
    """What all stages of a run share."""

    recipe: Training
    folder: TrainingFolder
    progress: Callable[[str, int, int], Any]
    """Makes a progress bar from a stage's title, its steps, and how many of them are done."""
    say: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    device: torch.device = field(init=False)
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.device = chosen_device(self.recipe.engine.device)
        self.processes = Processes(self.device.type == "cpu")

    @property
    def bf16(self) -> bool:
        """Whether to compute in bfloat16."""
        wanted = self.recipe.train.bf16
        if wanted is None:
            return self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return wanted


def arguments(
    kind: type[Arguments], spec: OptimiserSpec, setting: Setting, stage: str, rows: int, **own: Any
) -> Arguments:
    """Return a trainer's arguments for one stage of a recipe.

    Args:
        kind: the trainer's own class of arguments.
        spec: how the network is trained.
        setting: what all stages share.
        stage: name of the stage, and of the recipe's section.
        rows: number of training rows.
        own: arguments that only this stage has.

    Raises:
        RecipeError: `batch_size` cannot be shared out, or `trl` holds what the trainer does not know.
    """
    train, count = setting.recipe.train, setting.processes.count
    each = _at_once(spec, count, stage)
    steps = math.ceil(rows / spec.batch_size)
    options: dict[str, Any] = {
        "output_dir": str(setting.folder.checkpoints(stage)),
        "learning_rate": spec.learning_rate,
        "num_train_epochs": spec.num_train_epochs,
        "max_steps": spec.max_steps or -1,
        "per_device_train_batch_size": each,
        "gradient_accumulation_steps": spec.batch_size // (each * count),
        "lr_scheduler_type": spec.lr_scheduler_type,
        "warmup_steps": spec.warmup_steps,
        "weight_decay": spec.weight_decay,
        "max_grad_norm": spec.max_grad_norm,
        _checkpointing(kind): train.gradient_checkpointing,
        "bf16": setting.bf16,
        "use_cpu": setting.device.type == "cpu",
        "dataloader_pin_memory": setting.device.type == "cuda",
        "seed": setting.recipe.seed,
        "data_seed": setting.recipe.seed,
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "save_total_limit": 2,
        "logging_steps": min(train.logging_steps, max(1, steps)),
        # The first step's loss proves the reference; a loss that is no number must not read as 0.
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "report_to": list(train.report_to) or "none",
        "run_name": f"{setting.folder.path.name}-{stage}",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        **own,
    }
    known = {each.name for each in dataclasses.fields(kind)}
    for name in spec.trl:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {kind.__name__}"
            raise RecipeError(f"{stage}.trl", f'{kind.__name__} has no argument "{name}"', hint)
        if name in SETTLED:
            what = f'"{name}" has a place of its own in the recipe'
            raise RecipeError(f"{stage}.trl", what, "set it there")
    try:
        return kind(**{**options, **spec.trl})
    except (TypeError, ValueError) as error:
        raise RecipeError(stage, str(error).splitlines()[0]) from error


def _checkpointing(kind: type[TrainingArguments]) -> str:
    """Return what gradient checkpointing is called: transformers 5.23 has given it a new name."""
    known = {each.name for each in dataclasses.fields(kind)}
    new = "activation_checkpointing"
    return new if new in known else "gradient_checkpointing"


def _at_once(spec: OptimiserSpec, processes: int, stage: str) -> int:
    """Return how many rows go through a device at once."""
    share, rest = divmod(spec.batch_size, processes)
    if rest or not share:
        what = f"batch_size {spec.batch_size} cannot be shared by {processes} processes"
        raise RecipeError(stage, what, f"a multiple of {processes}")
    each = spec.per_device_train_batch_size
    if each is None:
        return next(n for n in range(min(MOST_AT_ONCE, share), 0, -1) if share % n == 0)
    if share % each:
        what = f"batch_size {spec.batch_size} over {processes} processes is {share} each"
        hint = f"per_device_train_batch_size {each} does not divide it; choose one that does"
        raise RecipeError(stage, what, hint)
    return each


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
        text = str(error)
        reasons = ("No space left", "File too large", "Disk quota", "PytorchStreamWriter", "I/O")
        if isinstance(error, (IvgError, torch.OutOfMemoryError)) or not any(
            reason in text for reason in reasons
        ):
            raise
        what = f"cannot be written: {text.splitlines()[0].lower()}"
        raise RecordError(str(path), what, "make room, then go on with --resume") from error
