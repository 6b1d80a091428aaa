"""`ivg bon`: N responses per prompt, of which the best by a value or a reward is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ivgcli.console import Narrator
from ivgcli.decoding import ChunkRanking, Mode
from ivgcli.decoding.search import Outcome, Request
from ivgcli.recipes import BonRecipe
from ivgcli.records import Prompt, ResponseWriter, TraceWriter
from ivgcli.values import Value
from ivgcli.workflows.assembly import Assembly
from ivgcli.workflows.fields import prompted, response_fields, rounded, shared_fields
from ivgcli.workflows.generate import assemble, decode_all
from ivgcli.workflows.summary import Part, Share, Summary, drawing


def best_of_n(
    recipe: BonRecipe,
    prompts: Sequence[Prompt],
    writer: ResponseWriter,
    trace: TraceWriter | None = None,
    progress: Narrator | None = None,
    share: Share | None = None,
) -> Summary:
    """Draw N responses for every wanted one, value each when it ends, and write the best.

    The draws are those of a chunk search with W = 1, K = N and whole responses as chunks, so both give the same result;
    here the N need not decode at once. Equal values: the first drawn wins. If some of the N fail, the others
    compete; if all fail, so does the record.
    """
    assembly = assemble(recipe, progress)
    mode = Mode(f"bon-{recipe.by}", chunk=ChunkRanking(ranking_value(recipe, assembly)))
    wanted = [
        (prompt, sample)
        for prompt in prompts
        for sample in range(recipe.sampling.samples)
        if (prompt.id, sample) not in writer.done
    ]
    known = {prompt.id: prompted(prompt) for prompt in prompts}
    by_id = {prompt.id: prompt for prompt in prompts}
    requests = [
        Request(known[prompt.id], sample, candidate)
        for prompt, sample in wanted
        for candidate in range(recipe.best_of)
    ]
    gathered: dict[tuple[str, int], list[Outcome]] = {}
    failures: list[tuple[str, str]] = []
    kept = [0]
    shared = {**shared_fields(recipe, mode.name), "n": recipe.best_of}
    bound = math.log(recipe.best_of) - (recipe.best_of - 1) / recipe.best_of

    def record(outcome: Outcome) -> None:
        key = (outcome.request.prompt.id, outcome.request.sample)
        gathered.setdefault(key, []).append(outcome)
        if len(gathered[key]) < recipe.best_of:
            return
        drawn = sorted(gathered.pop(key), key=lambda each: each.request.candidate)
        done = [each for each in drawn if each.winner is not None]
        best = max(done, key=lambda each: each.winner.value, default=drawn[0])
        if best.winner is None:
            failures.append((key[0], best.failure))
        else:
            kept[0] += len(best.winner.row.tokens)
        if trace is not None:
            trace.write(_traced(key, drawn, best))
        fields = response_fields(best, {**shared, "sample": key[1]}, bound, drawn)
        writer.write(by_id[key[0]].respond(fields))

    def completes(outcome: Outcome) -> int:
        return 0 if (outcome.request.prompt.id, outcome.request.sample) in gathered else 1

    each = recipe.best_of
    summary = decode_all(
        recipe,
        assembly,
        mode,
        requests,
        record,
        None,
        progress,
        completes,
        each,
        share,
        each,
        single=len(prompts) == 1,
    )
    drawn = (summary.tokens, summary.records)
    kept_only = replace(summary, records=summary.records // each, failures=failures, tokens=kept[0])
    if isinstance(kept_only, Part):
        return replace(kept_only, drawn=drawn)
    return replace(kept_only, notes=(*summary.notes, drawing(*drawn)))


def ranking_value(recipe: BonRecipe, assembly: Assembly) -> Value:
    """Return what ranks the drawn responses."""
    if recipe.by == "implicit":
        return assembly.implicit(recipe.guide, for_tokens=False)
    specs = recipe.guide.explicit if recipe.by == "explicit" else (recipe.reward,)
    return assembly.explicit(specs, for_tokens=False)


def _traced(key: tuple[str, int], drawn: Sequence[Outcome], best: Outcome) -> dict:
    """Return the trace of one choice: every candidate with its value, the kept one with rank 0."""
    return {
        "id": key[0],
        "sample": key[1],
        "candidates": [
            {
                "candidate": each.request.candidate,
                "value": rounded(each.winner.value) if each.winner else None,
                "rank": 0 if each is best else None,
                "finish": each.winner.row.finish if each.winner else None,
                "tokens": len(each.winner.row.tokens) if each.winner else 0,
                "text": each.text,
                "error": each.failure,
            }
            for each in drawn
        ],
    }
