"""What a trainer is told for one stage of a recipe, and what it may not be told."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from transformers import TrainingArguments
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from ivgcli.errors import RecipeError
from ivgcli.recipes import OptimiserSpec
from ivgcli.training.stages import Setting

Arguments = TypeVar("Arguments", bound=TrainingArguments)

LENGTH = "length"
"""The column by which `train_sampling_strategy: group_by_length` puts rows of a length together."""

MOST_AT_ONCE = 8
"""Rows that go through a device at once where the recipe does not say."""

SETTLED = {"output_dir", "seed", "data_seed", "report_to", "bf16", "use_cpu", "save_steps"}
SETTLED |= {"logging_steps", "per_device_train_batch_size", "gradient_accumulation_steps"}
SETTLED |= {"learning_rate", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps"}
SETTLED |= {"weight_decay", "max_grad_norm", "gradient_checkpointing", "activation_checkpointing"}
SETTLED |= {"beta", "loss_type", "loss_weights", "label_smoothing", "max_length"}
"""Arguments that the recipe sets by keys of its own."""

FIXED = {"logging_first_step", "save_strategy", "pad_token", "eos_token", "chat_template_path"}
FIXED |= {"precompute_ref_log_probs", "eval_strategy"}
"""Arguments that a run stands on: its proof, its checkpoints, the token ids that decoding reads."""


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
        RecipeError: `batch_size` cannot be shared out, `trl` holds what the trainer does not know or
            may not be told, or a tracker is not there.
    """
    train, count = setting.recipe.train, setting.processes.count
    require_trackers(train.report_to)
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
        # The column of lengths is no input of the model, but of the sampler.
        "remove_unused_columns": False,
        "length_column_name": LENGTH,
        "ddp_find_unused_parameters": False,
        **own,
    }
    require_known(kind, spec.trl, f"{stage}.trl")
    with building(stage):
        return kind(**{**options, **spec.trl})


def require_known(kind: type[TrainingArguments], given: Iterable[str], where: str) -> None:
    """Refuse arguments that a trainer does not have, or that are not the user's to set here."""
    known = {each.name for each in dataclasses.fields(kind)}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"see {kind.__name__}"
            raise RecipeError(where, f'{kind.__name__} has no argument "{name}"', hint)
        if name in SETTLED:
            what = f'"{name}" has a place of its own in the recipe'
            raise RecipeError(where, what, "set it there")
        if name in FIXED:
            raise RecipeError(where, f'"{name}" is not free here', "leave it out")


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that transformers does not know, or whose package is not there."""
    known = [*INTEGRATION_TO_CALLBACK, "all"]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted(known))}"
            raise RecipeError("train.report_to", f'no tracker "{name}"', hint)
        if name not in [*get_available_reporting_integrations(), "all", "azure_ml", "flyte"]:
            hint = f"pip install {name.replace('_', '-')}, or leave it out"
            raise RecipeError("train.report_to", f"{name} is not installed", hint)


@contextlib.contextmanager
def building(where: str) -> Iterator[None]:
    """Turn a trainer's refusal of what it was told into a sentence about that part of the recipe."""
    try:
        yield
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:
        raise RecipeError(where, str(error).strip().splitlines()[0].rstrip(".")) from error


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
