"""`ivg guide`: a guide beside a base, explained before anything is downloaded, loaded or computed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ivgcli import console
from ivgcli.cli.decoding import calm_libraries
from ivgcli.cli.options import Device, Dtype, Sets
from ivgcli.cli.planning import memory

if TYPE_CHECKING:
    from ivgcli.models.vocabulary import VocabularyMatch
    from ivgcli.workflows.cast import Part
    from ivgcli.workflows.compatibility import Compatibility, Member

WIDTH = 80
NAMES = 16
"""Columns of the names of roles."""

MEANINGS = (
    "shared: base tokens whose bytes are one token of the guide",
    "aligned: places between two base tokens that are between two of the guide's",
    "same span: base tokens that are one token of the guide at the same place",
)


def guide(
    guide: Annotated[
        str,
        typer.Argument(
            metavar="GUIDE", help="What --guide takes: a name, a YAML file or a folder."
        ),
    ],
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Model to steer: hub id, folder, adapter or .gguf.")
    ],
    vocabulary: Annotated[
        str,
        typer.Option(
            metavar="auto|same|ids|bytes", help="What would be done where the vocabularies differ."
        ),
    ] = "auto",
    json: Annotated[
        bool, typer.Option("--json", metavar="", help="Print one JSON object instead.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    sets: Sets = None,
) -> None:
    """Explain what a guide would do over a base: vocabularies, token guidance, ranking, memory.

    Only tokenizers and configurations are read (and fetched from the hub, unless HF_HUB_OFFLINE=1).
    """
    with console.guard():
        from ivgcli import recipes
        from ivgcli.records.lines import encode

        flags = {
            **{"base.model": base, "vocabulary": vocabulary},
            **{"engine.device": device, "engine.dtype": dtype},
        }
        recipe = recipes.load(recipes.GenerateRecipe, None, sets or (), flags, [guide])
        calm_libraries(quiet=True)
        from ivgcli.workflows.compatibility import explain

        found = explain(recipe)
        if json:
            sys.stdout.write(encode(found.to_json()).decode())
        else:
            print("\n".join(_lines(found)))


def _lines(found: Compatibility) -> Iterator[str]:
    """Yield what there is to say, in lines of at most 80 columns but for the names of models."""
    opening = f"ivg guide {found.guide}, vocabulary: {found.vocabulary}; no weights are loaded"
    yield from _folded(opening)
    yield ""
    yield from _headed(found.base)
    yield from _folded(f"{found.kind}, {found.size:,} tokens", NAMES)
    yield from _folded(_weights(found.base), NAMES)
    shown: dict[int, str] = {}
    for member in found.members:
        yield ""
        yield from _headed(member.part)
        yield from _member(member, shown)
    yield ""
    for role, match in _distinct(found):
        if match.coverage:
            yield from _coverage(role, match)
            yield ""
    if any(match.coverage for _, match in _distinct(found)):
        for meaning in MEANINGS:
            yield from _folded(meaning)
        yield ""
    total = "not known" if found.weights is None else memory(found.weights)
    yield f"weights of all networks: {total}"


def _distinct(found: Compatibility) -> Iterator[tuple[str, VocabularyMatch]]:
    """Yield every comparison once, with the first network that it is about."""
    seen: list[VocabularyMatch] = []
    for member in found.members:
        if member.match is not None and member.match not in seen:
            seen.append(member.match)
            yield member.part.role, member.match


def _headed(part: Part) -> Iterator[str]:
    """Yield a part's role and name; a model's name stays whole, however long it is."""
    yield f"{part.role:<{NAMES - 1}} {part.name}"


def _member(member: Member, shown: dict[int, str]) -> Iterator[str]:
    """Yield what there is to say of one network.

    Args:
        member: the network.
        shown: comparisons that have been told, and the role they were told of.
    """
    match = member.match
    if match is not None:
        yield from _folded(f"{match.relation}: {member.kind}, {match.guide_size:,} tokens", NAMES)
        if id(match) in shown:
            yield from _folded(f"compares with the base as {shown[id(match)]} does", NAMES)
        else:
            shown[id(match)] = member.part.role
            for sentence in _compared(match):
                yield from _folded(sentence, NAMES)
    yield from _folded(f"token guidance: {member.tokens}", NAMES)
    yield from _folded(f"chunk ranking: {member.chunks}", NAMES)
    if member.part.found is not None:
        yield from _folded(_weights(member.part), NAMES)


def _compared(match: VocabularyMatch) -> Iterator[str]:
    """Yield what two vocabularies have in common, and the first difference."""
    yield (
        f"{match.shared_strings:,} strings in common, {match.shared_ids:,} of the base's "
        f"{match.base_size:,} at the same id"
    )
    if match.shared_bytes is not None:
        yield f"{match.shared_bytes:,} of the base's tokens are one token here, by their bytes"
    if match.first_difference is not None:
        token, ours, theirs = match.first_difference
        other = "nothing" if theirs is None else f'"{theirs}"'
        yield f'the first difference: token {token} is "{ours}" to the base and {other} here'
    elif not match.same:
        yield match.sentence()


def _coverage(role: str, match: VocabularyMatch) -> Iterator[str]:
    """Yield the table of how a guide's tokens cover the base's."""
    rows = [
        [name, *(f"{100 * share:.1f}%" for share in (each.shared, each.aligned, each.same_span))]
        for name, each in match.coverage.items()
    ]
    yield console.table([f"base and {role}", "shared", "aligned", "same span"], rows, width=WIDTH)


def _weights(part: Part) -> str:
    """Return what a network's weights take, and where that is known from."""
    found = part.found
    held = (
        "of a size not known"
        if part.weights is None
        else f"{memory(part.weights)} as {part.format}"
    )
    told = [f"weights: {held}"]
    if part.notes:
        # They are counted elsewhere, but for those of an adapter.
        told = [*part.notes, *([f"{held} of its own"] if part.weights else [])]
    if found is not None and found.missing is not None:
        told.append(found.missing)
        if found.told_by is not None:
            told.append(f"size by {found.told_by}")
    return "; ".join(told)


def _folded(text: str, indent: int = 0) -> list[str]:
    """Return a sentence in lines of at most 80 columns; no word is broken."""
    space = " " * indent
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=space,
        subsequent_indent=space + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
