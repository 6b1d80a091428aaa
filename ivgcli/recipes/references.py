"""Guide references: NAME, FILE or DIR to the guide itself, several of them merged into one."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivgcli.errors import RecipeError
from ivgcli.recipes.syntax import Document, KeyPath, read

GUIDE_FILE = "guide.yaml"
"""What a training command calls the guide in its output folder."""

MODEL_KEYS = ("tuned", "reference", "model")
"""Keys of a value that hold a model."""


def shipped_dir() -> Path:
    """Return the folder of the recipes that come with the package.

    A wheel carries them inside the package; an editable install has them beside it.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "shipped_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_guides() -> tuple[str, ...]:
    """Return the names of the guides that come with the package, sorted."""
    return tuple(sorted(path.stem for path in (shipped_dir() / "guides").glob("*.yaml")))


def resolve(layers: Sequence[tuple[Any, str]], beside: Path | None = None) -> Document:
    """Merge guides into one: the later one's `implicit` and `explicit` replace the earlier one's.

    Args:
        layers: each a reference or a guide's own mapping, with the place that named it.
        beside: folder of the recipe that named them, searched after the working directory.

    Raises:
        RecipeError: a reference leads nowhere, or what it leads to is no guide.
    """
    merged: dict[str, Any] = {}
    places: dict[KeyPath, str] = {}
    names: list[str] = []
    for reference, place in layers:
        guide = _one(reference, place, beside)
        names.append(str(guide.value.get("name", "inline")))
        for key, value in guide.value.items():
            for path in [path for path in places if path[0] == key]:
                del places[path]
            merged[key] = value
        places.update(guide.places)
    if len(names) > 1:
        merged["name"] = "+".join(names)
        merged.pop("description", None)
    return Document(merged, places)


def _one(reference: Any, place: str, beside: Path | None) -> Document:
    """Return the guide that one reference or mapping means."""
    if isinstance(reference, dict):
        return Document(dict(reference), {})
    if not isinstance(reference, str):
        hint = "give a name, a file, a folder or the guide itself"
        raise RecipeError(place, "guide: expected text or a mapping", hint)
    path = _find(reference, place, beside)
    document = read(path)
    if not isinstance(document.value, dict):
        raise RecipeError(str(path), "not a guide", "give it implicit, explicit or both")
    guide = {"name": path.parent.resolve().name if path.name == GUIDE_FILE else path.stem}
    guide.update(document.value)
    for kind in ("implicit", "explicit"):
        if kind in guide:
            guide[kind] = _with_local_models(guide[kind], path.parent)
    return Document(guide, document.places)


def _find(reference: str, place: str, beside: Path | None) -> Path:
    """Return the file behind a reference."""
    looks_like_path = bool(re.search(r"\.ya?ml$|[/\\]|^\.", reference))
    candidates = [Path(reference).expanduser()]
    if beside is not None:
        candidates.append(beside / reference)
    if not looks_like_path:
        named = f"{reference}.yaml"
        candidates = [Path("recipes/guides", named), shipped_dir() / "guides" / named, *candidates]
    for candidate in candidates:
        if candidate.is_file() and (looks_like_path or candidate.suffix == ".yaml"):
            return candidate
        if (candidate / GUIDE_FILE).is_file():
            return candidate / GUIDE_FILE
    if looks_like_path or Path(reference).exists():
        lacks = f"has no {GUIDE_FILE}" if Path(reference).is_dir() else "is no guide file"
        what = f'guide "{reference}" {lacks if Path(reference).exists() else "is not there"}'
        raise RecipeError(place, what, f"give a YAML file or a folder with {GUIDE_FILE}")
    close = difflib.get_close_matches(reference, shipped_guides(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    known = ", ".join(shipped_guides())
    raise RecipeError(
        place,
        f'no guide named "{reference}"',
        f"{hint}shipped: {known}; or give a YAML file or a folder with {GUIDE_FILE}",
    )


def _with_local_models(values: Any, folder: Path) -> Any:
    """Return raw values with relative model paths made to start from the guide's folder.

    Only a path that exists there is changed, so hub ids stay what they are.
    """
    if isinstance(values, list):
        return [_with_local_models(value, folder) for value in values]
    if isinstance(values, str):
        return _local(values, folder)
    if not isinstance(values, dict):
        return values
    changed = dict(values)
    for key in MODEL_KEYS:
        model = changed.get(key)
        if isinstance(model, str):
            changed[key] = _local(model, folder)
        elif isinstance(model, dict) and isinstance(model.get("model"), str):
            changed[key] = {**model, "model": _local(model["model"], folder)}
    return changed


def _local(model: str, folder: Path) -> str:
    """Return `model` as a path from the working directory if it is one from `folder`."""
    beside = folder / model
    return os.path.normpath(beside) if model and beside.exists() else model
