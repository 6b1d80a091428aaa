"""Which checkpoint of a stage to go on from: the newest that is whole."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

STATE = "trainer_state.json"
"""Written last of all, so a checkpoint without one is not finished."""

TORCH_FILES = ("optimizer.pt", "scheduler.pt")
"""What training cannot go on without, beside the weights."""

RANDOM_STATES = "rng_state*.pth"
"""One file for each process that saved the checkpoint."""


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest whole checkpoint of a stage, and the torn ones that are newer.

    A kill or a full disk in the middle of saving leaves a folder with a checkpoint's name and not
    all of its content; the trainer itself would take it and fail.
    """
    found = [each for each in folder.glob("checkpoint-*") if re.search(r"-\d+$", each.name)]
    torn: list[Path] = []
    for each in sorted(found, key=lambda path: -int(path.name.rpartition("-")[2])):
        if whole(each):
            return each, torn
        torn.append(each)
    return None, torn


def whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds its weights, optimiser and states, each readable to its end."""
    state = checkpoint / STATE
    if not state.is_file() or not state.read_bytes().rstrip().endswith(b"}"):
        return False
    weights = list(checkpoint.glob("*.safetensors"))
    # FSDP and DeepSpeed write folders of shards instead.
    sharded = any(checkpoint.glob("*_0/*")) or any(checkpoint.glob("global_step*"))
    if not weights and not sharded:
        return False
    written = [checkpoint / name for name in TORCH_FILES]
    if sharded:
        written = [each for each in written if each.exists()]
    random_states = list(checkpoint.glob(RANDOM_STATES))
    return (
        bool(random_states)
        and all(map(_readable, weights))
        and all(map(zipfile.is_zipfile, [*written, *random_states]))
    )


def _readable(weights: Path) -> bool:
    """Return whether a safetensors file has all the bytes that its header speaks of."""
    try:
        with safe_open(weights, framework="pt") as file:
            return bool(list(file.keys()))
    except (SafetensorError, OSError):
        return False
