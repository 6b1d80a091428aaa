"""`ivg train-implicit` and `ivg train-explicit`: records in, a guide folder out."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivgcli import console, records
from ivgcli.cli.decoding import calm_libraries
from ivgcli.cli.options import (
    MODELS,
    STREAMS,
    Device,
    Limit,
    PrintRecipe,
    Quiet,
    RecipeFile,
    Resume,
    RewardLabel,
    Seed,
    Sets,
)
from ivgcli.errors import IvgError, RecipeError, RecordError

if TYPE_CHECKING:
    from ivgcli.recipes import Training

LEARNING = "Learning"
VALUE = "Value"

Init = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Language model to start from.", rich_help_panel=MODELS),
]
Layers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Keep only its first N layers.", rich_help_panel=MODELS),
]
Pairs = Annotated[
    str | None,
    typer.Option(
        "--in",
        "-i",
        metavar="FILE|-|hf:NAME",
        help="Preference pairs, as TRL takes them; default: -.",
        rich_help_panel=STREAMS,
    ),
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE|N|FILE",
        help="Kept from training, for the report: a share, a number, or another file.",
        rich_help_panel=STREAMS,
    ),
]
OtherGuide = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="NAME|FILE|DIR",
        help="Another guide, to compare with in the report.",
        rich_help_panel=MODELS,
    ),
]
PairsOrPrompts = Annotated[
    str | None,
    typer.Option(
        "--in",
        "-i",
        metavar="FILE|-|hf:NAME",
        help="Preference pairs, or prompts where responses are drawn and the reward is given.",
        rich_help_panel=STREAMS,
    ),
]
OutFolder = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="DIR", help="Guide folder.", rich_help_panel=STREAMS),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Train with N processes, one a GPU.", rich_help_panel="Engine"
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Longest prompt and response, in tokens.", rich_help_panel=LEARNING
    ),
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="trackio, tensorboard, wandb, …", rich_help_panel=LEARNING),
]


def train_implicit(
    recipe: RecipeFile = None,
    init: Init = None,
    layers: Layers = None,
    guide: OtherGuide = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="dpo, ipo, … (TRL's); twice: a mix.", rich_help_panel=LEARNING
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            metavar="B", help="How strongly tuned is held to reference.", rich_help_panel=LEARNING
        ),
    ] = None,
    max_length: MaxLength = None,
    report_to: ReportTo = None,
    seed: Seed = None,
    source: Pairs = None,
    held_out: HeldOut = None,
    out: OutFolder = None,
    limit: Limit = None,
    resume: Resume = False,
    device: Device = None,
    gpus: Gpus = None,
    sets: Sets = None,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
) -> None:
    """Train a tuned and a reference model on preference pairs: SFT, then DPO."""
    with console.guard():
        from ivgcli import recipes

        flags = {
            **_shared(init, layers, held_out, max_length, report_to, seed, device),
            **{"preference.loss": loss or None, "preference.beta": beta},
        }
        resolved = recipes.load(recipes.TrainImplicitRecipe, recipe, sets or (), flags, guide or ())
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        _train(resolved, source, out, limit, resume, gpus, quiet, "train_implicit")


def train_explicit(
    recipe: RecipeFile = None,
    init: Init = None,
    layers: Layers = None,
    guide: OtherGuide = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|MODULE:FUNCTION",
            help="What a response is worth; default: train a reward model on the pairs.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    reward_label: RewardLabel = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model that draws responses.", rich_help_panel=MODELS),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="HEAD", help="scalar or token-q.", rich_help_panel=VALUE),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="fudge, fudge-bce, monte-carlo, td-lambda or cd-q.",
            rich_help_panel=VALUE,
        ),
    ] = None,
    responses: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="given in the pairs, drawn from the base, or guided.",
            rich_help_panel=VALUE,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Rounds of drawing and training.", rich_help_panel=VALUE),
    ] = None,
    max_length: MaxLength = None,
    report_to: ReportTo = None,
    seed: Seed = None,
    source: PairsOrPrompts = None,
    held_out: HeldOut = None,
    out: OutFolder = None,
    limit: Limit = None,
    resume: Resume = False,
    device: Device = None,
    gpus: Gpus = None,
    sets: Sets = None,
    print_recipe: PrintRecipe = False,
    quiet: Quiet = False,
) -> None:
    """Train a prefix scorer: a reward model on pairs, then FUDGE, TD(λ), Monte-Carlo or CD-Q."""
    with console.guard():
        from ivgcli import recipes

        flags = {
            **_shared(init, layers, held_out, max_length, report_to, seed, device),
            **{"reward": reward, "reward.label": reward_label, "rollouts.base": base},
            **{"value.head": head, "value.target": target},
            **{"value.responses": responses, "value.rounds": rounds},
        }
        resolved = recipes.load(recipes.TrainExplicitRecipe, recipe, sets or (), flags, guide or ())
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        _train(resolved, source, out, limit, resume, gpus, quiet, "train_explicit")


def _shared(
    init: str | None,
    layers: int | None,
    held_out: str | None,
    max_length: int | None,
    report_to: list[str] | None,
    seed: int | None,
    device: str | None,
) -> dict[str, Any]:
    """Return the keys that the flags of both commands set."""
    return {
        "init.model": init,
        "init.layers": layers,
        "data.held_out": None if held_out is None else _number(held_out),
        "data.max_length": max_length,
        "train.report_to": report_to or None,
        "seed": seed,
        "engine.device": device,
    }


def _number(text: str) -> int | float | str:
    """Return what `--held-out` says: a number if it reads as one, else a file."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _train(
    recipe: Training,
    source: str | None,
    out: str | None,
    limit: int | None,
    resume: bool,
    gpus: int | None,
    quiet: bool,
    workflow: str,
) -> None:
    """Read the records, open the folder, start as many processes as wanted, and train."""
    from ivgcli import recipes

    if out in (None, "-"):
        raise RecordError("--out", "a folder is to be made, and none is named", "--out runs/mine")
    calm_libraries(quiet)
    _calm_trainers()
    launched = "RANK" in os.environ
    given, held_out = _read(recipe, source, limit, alone=gpus in (None, 1) and not launched)
    if gpus is not None and gpus > 1 and not launched:
        from ivgcli.training.processes import launch

        raise SystemExit(launch(gpus, _without_gpus(sys.argv[1:])))
    if not launched:
        recipe = _on_one_gpu(recipe)
    first = os.environ.get("RANK", "0") == "0"
    quiet = quiet or not first
    try:
        run = _run_of(recipes.run_id(recipe), given, held_out)
        folder = records.TrainingFolder(
            Path(str(out)), run, recipes.to_yaml(recipe), resume, writes=first
        )
        with folder:
            if folder.finished:
                console.say(f"{out} is finished", quiet=quiet)
                return
            _run(recipe, folder, given, held_out, quiet, workflow)
    except IvgError:
        if not first:
            time.sleep(5)  # the first process says the same, and then ends us all
        raise
    except KeyboardInterrupt:
        if not first:
            raise SystemExit(130) from None  # once is enough
        raise


def _run(
    recipe: Training,
    folder: records.TrainingFolder,
    given: Sequence[Any],
    held_out: Sequence[Any],
    quiet: bool,
    workflow: str,
) -> None:
    """Train, and print the report."""
    console.say("loading libraries", quiet=quiet or not sys.stderr.isatty())
    from ivgcli.training import runs
    from ivgcli.training.stages import Setting

    def progress(title: str, total: int, done: int, things: str = "steps") -> console.Progress:
        return console.Progress(total, done=done, quiet=quiet, things=things, title=title)

    setting = Setting(
        recipe,
        folder,
        progress,
        lambda text: console.say(text, quiet=quiet),
        lambda text: console.warn(text) if folder.writes else None,
    )
    outcome = getattr(runs, workflow)(setting, given, held_out)
    if outcome.table:
        console.say(outcome.table, quiet=quiet)
    console.say(f"{folder.path} is finished, {outcome.seconds:.0f} s", quiet=quiet)


def _read(
    recipe: Training, source: str | None, limit: int | None, alone: bool
) -> tuple[list[Any], list[Any]]:
    """Return the records to train on and those held out."""
    from ivgcli.training.selection import keys_of, split

    if source in (None, "-"):
        if not alone:
            what = "several processes cannot read one pipe"
            raise RecordError("--in", what, "name a file with --in")
        if sys.stdin.isatty():
            hint = "name a file with --in, or pipe JSON lines in"
            raise RecordError("--in", "there are no pairs to read", hint)
    read: Any = records.read_pairs if _needs_pairs(recipe) else records.read_pairs_or_prompts
    given = read(source or "-", limit)
    held_out = recipe.data.held_out
    if isinstance(held_out, str):
        return given, read(held_out)
    return split(given, held_out, recipe.seed, keys_of(given))


def _needs_pairs(recipe: Training) -> bool:
    """Return whether prompts alone are not enough to train on."""
    value = getattr(recipe, "value", None)
    return value is None or getattr(recipe, "reward", None) is None or value.responses == "given"


def _run_of(recipe: str, given: Sequence[Any], held_out: Sequence[Any]) -> str:
    """Return eight hex digits that name a recipe together with the records it is run on."""
    digest = hashlib.sha256(recipe.encode())
    for each in (given, held_out):
        digest.update(repr(each).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:8]


def _without_gpus(words: Sequence[str]) -> list[str]:
    """Return a command line's words without --gpus and its number."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--gpus="):
            skip = False
        elif word == "--gpus":
            skip = True
        else:
            kept.append(word)
    return kept


def _on_one_gpu(recipe: Training) -> Training:
    """Let torch see one GPU only, and return the recipe for it.

    With several in sight of one process, the trainer would split each batch over them in a way that
    TRL refuses.
    """
    device = recipe.engine.device or "cuda"
    if not device.startswith("cuda"):
        return recipe
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    _, _, number = device.partition(":")
    index = int(number) if number.isdigit() else 0
    names = [str(index)] if visible is None else visible.split(",")[index : index + 1]
    if not names:
        what = f'"{device}", but CUDA_VISIBLE_DEVICES is "{visible}"'
        raise RecipeError("engine.device", what, "a smaller number")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[0]
    if recipe.engine.device is None:
        return recipe
    engine = recipe.engine.model_copy(update={"device": "cuda"})
    return recipe.model_copy(update={"engine": engine})


def _calm_trainers() -> None:
    """Keep the trainers' libraries from talking over ours, and from calling home."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("trl").setLevel(logging.ERROR)
    # Libraries announce their own coming changes; torch.distributed, that gloo is used as asked.
    for category in (FutureWarning, UserWarning, DeprecationWarning):
        warnings.filterwarnings(
            "ignore", category=category, module="(torch|transformers|trl|peft|accelerate)"
        )
