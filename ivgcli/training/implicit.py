"""`ivg train-implicit`: pairs to a reference and a tuned model, whose log-ratio is the value.

Reference: Rafailov et al. (2023), Direct Preference Optimization; Liu et al. (2024), IVG, section 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ivgcli.errors import ModelError
from ivgcli.recipes import TrainImplicitRecipe
from ivgcli.training.adapters import lora_config
from ivgcli.training.options import LENGTH, arguments, building
from ivgcli.training.selection import EncodedPair
from ivgcli.training.stages import Setting, saving, train, watched
from ivgcli.training.start import Start, load_trained

REFERENCE, TUNED = "reference", "tuned"
ADAPTER = "adapter_config.json"

SFT, PREFERENCE = "sft", "preference"

LN2 = math.log(2)


def train_pair(setting: Setting, start: Start, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Train the reference, then the tuned model, each unless it is finished already.

    Args:
        setting: recipe and folder.
        start: the model to start from.
        pairs: what to train on.

    Returns:
        What each stage came to, in this run or in the one that it goes on from.

    Raises:
        ModelError: training diverged, or the reference is not what the tuned model started from.
        RecipeError: the recipe asks a trainer for what it does not know.
        RecordError: the disk is full.
    """
    recipe: Any = setting.recipe
    folder = setting.folder
    came_to: dict[str, Any] = folder.recorded().get("stages", {}) if folder.writes else {}
    # A word that the second stage does not know must not cost the first one.
    preference_options(setting, len(pairs))
    if not folder.has(REFERENCE) and not _reference_is_given(recipe, start):
        came_to[SFT] = fine_tune(setting, start, pairs)
        folder.account({"stages": came_to})
    setting.processes.wait()
    if not folder.has(TUNED):
        came_to[PREFERENCE] = optimise_preference(setting, start, pairs)
        folder.account({"stages": came_to})
    setting.processes.wait()
    return came_to


def _reference_is_given(recipe: TrainImplicitRecipe, start: Start) -> bool:
    """Return whether the reference is the model to start from itself, so that nothing is to be written."""
    return recipe.sft is None and not start.changed


def reference_of(setting: Setting, start: Start) -> str:
    """Return where the reference is: in the run's folder, or where training started from."""
    if setting.folder.has(REFERENCE):
        return str(setting.folder.path / REFERENCE)
    return start.place


def fine_tune(
    setting: Setting, start: Start, pairs: Sequence[EncodedPair]
) -> dict[str, Any] | None:
    """Fine-tune on the pairs' responses and write the reference; without an sft section, only write it."""
    recipe: Any = setting.recipe
    model, spec = start.load(), recipe.sft
    came_to = None
    if spec is not None:
        rows = supervised_rows(pairs, spec.responses == "both")
        options = arguments(
            SFTConfig,
            spec,
            setting,
            SFT,
            len(rows),
            max_length=recipe.data.max_length,
            completion_only_loss=True,
        )
        with building(SFT):
            trainer = watched(SFTTrainer)(
                model=model,
                args=options,
                train_dataset=Dataset.from_list(rows),
                processing_class=start.tokenizer,
                peft_config=_lora(recipe),
            )
        came_to = train(trainer, setting, SFT, "fine-tuning")
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel):
            # The tuned adapter goes over the reference, so the reference has to be one model.
            model = model.merge_and_unload()
    write_model(setting, REFERENCE, model, start)
    return came_to


def supervised_rows(pairs: Sequence[EncodedPair], both: bool) -> list[dict[str, Any]]:
    """Return the distinct responses of pairs as TRL takes tokens: the loss is on the response only."""
    seen: dict[tuple[int, ...], dict[str, Any]] = {}
    for pair in pairs:
        for example in (pair.chosen, pair.rejected) if both else (pair.chosen,):
            mask = [0] * len(example.prompt_ids) + [1] * len(example.response_ids)
            row = {"input_ids": example.ids, "completion_mask": mask, LENGTH: len(mask)}
            seen.setdefault(tuple(example.ids), row)
    return list(seen.values())


def optimise_preference(
    setting: Setting, start: Start, pairs: Sequence[EncodedPair]
) -> dict[str, Any]:
    """Tune the reference on the pairs and write the tuned model, or the adapter that makes it.

    Both networks are read from where the reference lies on the disk: the value is the log-ratio of
    the two folders, and what is in memory is not what decoding will load.
    """
    recipe: Any = setting.recipe
    source = reference_of(setting, start)
    rows = [
        {
            "prompt_ids": pair.chosen.prompt_ids,
            "chosen_ids": pair.chosen.response_ids,
            "rejected_ids": pair.rejected.response_ids,
            LENGTH: max(len(pair.chosen.ids), len(pair.rejected.ids)),
        }
        for pair in pairs
    ]
    options = preference_options(setting, len(rows))
    given = start.spec
    load = (lambda: load_trained(source, given)) if setting.folder.has(REFERENCE) else start.load
    with building(PREFERENCE):
        trainer = watched(DPOTrainer)(
            model=load(),
            # With an adapter, the reference is the model with the adapter switched off.
            ref_model=None if recipe.lora is not None else load(),
            args=options,
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=start.tokenizer,
            peft_config=_lora(recipe),
            callbacks=[ReferenceCheck(1e-2 if setting.bf16 else 1e-4)],
        )
    # TRL would tokenise prompt and response together; these are the ids that decoding reads.
    trainer.train_dataset = Dataset.from_list(rows)
    came_to = train(trainer, setting, PREFERENCE, "preference")
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        here = setting.folder.has(REFERENCE)
        config = model.peft_config[model.active_adapter]
        config.base_model_name_or_path = f"../{REFERENCE}" if here else start.place
    write_model(setting, TUNED, model, start)
    return came_to


def _lora(recipe: TrainImplicitRecipe) -> LoraConfig | None:
    """Return the adapter of a recipe, None for none."""
    return None if recipe.lora is None else lora_config(recipe.lora, "CAUSAL_LM")


def preference_options(setting: Setting, rows: int) -> DPOConfig:
    """Return the preference trainer's arguments; raises as `arguments` does."""
    recipe: Any = setting.recipe
    spec = recipe.preference
    return arguments(
        DPOConfig,
        spec,
        setting,
        PREFERENCE,
        rows,
        beta=spec.beta,
        loss_type=list(spec.loss),
        loss_weights=None if spec.loss_weights is None else list(spec.loss_weights),
        label_smoothing=spec.label_smoothing,
        max_length=recipe.data.max_length,
    )


def write_model(setting: Setting, name: str, model: Any, start: Start) -> None:
    """Write a model with its tokenizer under its name, by the first process."""
    with setting.folder.publishing(name) as work:
        if setting.processes.first:
            with saving(setting.folder.path / name):
                model.save_pretrained(work)
                start.tokenizer.save_pretrained(work)


class ReferenceCheck(TrainerCallback):
    """Proves at the first step that training starts from the reference: all rewards are 0, and DPO's loss is ln 2.

    With dropout the two would differ by it alone, so nothing is proven then; TRL switches it off.

    Args:
        tolerance: how far numbers may be off, as coarse as bfloat16 may make them.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any
    ) -> None:
        """Look at the first step's log."""
        if state.global_step != 1 or not logs or "loss" not in logs or not args.disable_dropout:
            return
        found = {name: float(logs[f"rewards/{name}"]) for name in ("chosen", "rejected")}
        loss = float(logs["loss"])
        off = [name for name, reward in found.items() if abs(reward) > self.tolerance]
        # A factor, or a mixture of experts' own loss, makes ln 2 another number.
        plain = args.loss_type == ["sigmoid"] and not args.loss_weights and not args.use_weighting
        wrong = plain and "aux_loss" not in logs and abs(loss - LN2) > self.tolerance
        if off or wrong:
            what = (
                f"the first step's loss is {loss:.6f} where ln 2 is due, its rewards"
                f" {found['chosen']:.2g} and {found['rejected']:.2g} where 0 is:"
                " the reference is not the model that training starts from"
            )
            raise ModelError("preference", what, "report this, with the recipe")


def load_pair(setting: Setting, start: Start) -> tuple[Any, Any]:
    """Return tuned and reference model as they lie on the disk, ready to be read."""
    source = reference_of(setting, start)
    here = setting.folder.has(REFERENCE)
    reference = load_trained(source, start.spec) if here else start.load()
    tuned_folder: Path = setting.folder.path / TUNED
    if (tuned_folder / ADAPTER).is_file():
        base = load_trained(source, start.spec) if here else start.load()
        tuned = PeftModel.from_pretrained(base, str(tuned_folder))
    else:
        tuned = load_trained(str(tuned_folder), start.spec)
    pair = (tuned.eval().to(setting.device), reference.eval().to(setting.device))
    for each in pair:
        each.requires_grad_(False)
    torch.cuda.empty_cache()
    return pair
