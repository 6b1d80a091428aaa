"""Further passes for the candidates whose value is still uncertain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ivgcli.models.readings import read_all
from ivgcli.values.bounds import Bounds
from ivgcli.values.openings import canonical_opening
from ivgcli.values.plan import Plan

ROUNDS = 100
"""Rounds of further passes in one step, at most; each goes one token deeper."""


def narrow(plan: Plan, bounds: Sequence[Bounds], weights: NDArray[np.float64]) -> list[int]:
    """Spend further passes until little enough of the base's probability is uncertain; return each row's number.

    Args:
        plan: of R rows.
        bounds: each model's, which are narrowed.
        weights: (R, C) the base's probabilities of the candidates.
    """
    exact = plan.precision.width == 0
    chances = np.concatenate([weights, np.full((len(weights), 1), float(exact))], axis=1)
    passes = [0] * len(weights)
    for _ in range(ROUNDS):
        uncertain = widths(bounds) > plan.precision.width
        wide = (chances * uncertain).sum(-1) > plan.precision.mass
        if not wide.any():
            break
        found = {
            row: _grow(plan, row, uncertain[row], bounds) for row in np.flatnonzero(wide).tolist()
        }
        grown = [row for row, (new, _) in found.items() if new]
        if not grown:
            if not any(out for _, out in found.values()):
                break
            continue
        some = plan.part(grown)
        tails = some.tails()
        read_all([], tails)
        some.keep(tails, further=True)
        for mine, other in zip(bounds, some.bounds(), strict=True):
            mine.patch(grown, other)
        for row in grown:
            passes[row] += 1
    return passes


def _grow(
    plan: Plan, row: int, uncertain: NDArray[np.bool_], bounds: Sequence[Bounds]
) -> tuple[bool, bool]:
    """Give nodes to what uncertain candidates of a row may go through; return whether any are new, or ruled out."""
    fork = plan.forks[row]
    before, out = fork.nodes, False
    for side, found in enumerate(bounds):
        lattice = fork.lattices[side]
        gap = found.gap()[row]
        for at in np.flatnonzero(found.places // plan.columns == row).tolist():
            column = int(found.places[at]) % plan.columns
            share = 0.1 * gap[column] if plan.precision.width else 0.0
            if not uncertain[column] or found.masses[at] <= share:
                continue
            node, token = int(found.nodes[at]), int(found.tokens[at])
            # The last column is the text itself.
            candidate = b"" if column == plan.columns - 1 else plan.pieces(row, [column])[0]
            if plan.precision.tokenisations == "possible" and not _possible(
                plan, row, side, node, token, candidate
            ):
                found.masses[at], out = 0.0, True
                rest = lattice.rest(node, candidate) or b""
                lattice.excluded.add((node, token, rest))
            else:
                lattice.grow(node, token, candidate)
    return fork.nodes > before, out


def _possible(plan: Plan, row: int, side: int, node: int, token: int, candidate: bytes) -> bool:
    """Return whether a canonical tokenisation can go through `token` after `node` on its way to a candidate."""
    fork = plan.forks[row]
    lattice, text = fork.lattices[side], plan.readers[side].texts[fork.row]
    piece = lattice.vocabulary.pieces[token] or b""
    rest = (lattice.rest(node, candidate) or b"")[len(piece) :]
    path = [*text.ids[text.root : fork.begins[side]], *lattice.path(node), token]
    whole = bytes(text.text[text.root_place :]) + text.held + candidate
    return canonical_opening(lattice.vocabulary, text.before, whole, path, rest)


def widths(bounds: Sequence[Bounds]) -> np.ndarray:
    """Return the nats (R, C + 1) between the bounds of log-ratios; 0 where a model gives no probability at all."""
    total = np.zeros(bounds[0].lower.shape)
    for found in bounds:
        gap = found.gap()
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = np.log1p(gap / found.lower)
        total = total + np.where(gap > 0, nats, 0.0)
    return total
