"""What a record says: prompts as the engine takes them, outcomes as fields, rankings as traces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ivgcli.decoding import ChunkRanking
from ivgcli.decoding.beams import Candidate
from ivgcli.decoding.search import Outcome, Search
from ivgcli.recipes import run_id
from ivgcli.records import Prompt, TraceWriter
from ivgcli.values import Prompted
from ivgcli.values.coverage import summed
from ivgcli.workflows.assembly import Assembly


def prompted(prompt: Prompt) -> Prompted:
    """Return a record's prompt as the engine takes it."""
    plain = prompt.text
    if plain is None:
        plain = "\n\n".join(str(message["content"]) for message in prompt.messages or ())
    return Prompted(prompt.id, prompt.text, prompt.messages, plain)


def shared_fields(recipe: Any, mode: str) -> dict[str, Any]:
    """Return the fields that all responses of a run have in common."""
    guide = None if recipe.guide is None else recipe.guide.name
    return {
        "mode": mode,
        "base": recipe.base.model,
        "guide": guide,
        "seed": recipe.seed,
        "run": run_id(recipe),
    }


def response_fields(
    outcome: Outcome,
    fields: dict[str, Any],
    kl_choice: float = 0.0,
    drawn: Sequence[Outcome] = (),
) -> dict[str, Any]:
    """Return the fields of one response, or of its failure.

    Args:
        outcome: the response.
        fields: what it shares with others of its run, and `sample`.
        kl_choice: as `choice_bound` says.
        drawn: all outcomes that it was chosen from, if there are others.
    """
    head = {"response": None, "sample": fields["sample"]}
    head.update({key: fields[key] for key in ("mode", "base", "guide", "seed")})
    rest = {key: value for key, value in fields.items() if key not in head}
    won = outcome.winner
    if won is None:
        return {**head, "error": outcome.failure, **rest}
    bridged = summed([outcome.coverage])
    if bridged is not None:
        bridged = {name: rounded(number) for name, number in bridged.items()}
    return {
        **head,
        "response": outcome.text,
        "tokens": len(won.row.tokens),
        "finish": won.row.finish,
        "value": rounded(won.value),
        "base_logprob": rounded(won.base_logprob),
        "kl": rounded(won.kl),
        "kl_choice": rounded(kl_choice),
        "compute": compute(drawn or [outcome]),
        **usage(drawn or [outcome]),
        **({} if bridged is None else {"vocabulary": bridged}),
        **rest,
    }


def compute(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Return what the requests for one record took: forward tokens and FLOPs by the role of each network.

    Requests for one prompt read it once. A network with two roles counts for the first of them.

    Args:
        outcomes: of one prompt, at least one.
    """
    found: dict[str, dict[str, float]] = {}
    prompts = {}
    for number, outcome in enumerate(outcomes):
        for place, spent in enumerate(outcome.spent):
            first = prompts.setdefault(place, number) == number
            tokens = spent.tokens + (spent.prompt_tokens if first else 0)
            entry = found.setdefault(spent.role, {"tokens": 0, "flops": 0})
            entry["tokens"] += tokens
            entry["flops"] += tokens * spent.flops_per_token
    return found


def usage(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Return what a server counted for one record, under the name of the field; nothing where none served."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.usage)
    total = {name: sum(each.usage.get(name, 0) for each in outcomes) for name in names}
    return {"usage": total} if total else {}


def choice_bound(ranking: ChunkRanking | None, outcome: Outcome) -> float:
    """Return an upper bound, in nats, on the divergence that choosing among candidates adds.

    Best of N (K = N, W = 1, whole responses): ln N − (N−1)/N. A chunk search: at most W·K^C of its candidates can
    carry a given response of C chunks, so its probability grows by no larger factor.

    Args:
        ranking: how candidates are ranked; None: they are not.
        outcome: the response chosen.

    Reference:
        Beirami et al. (2024), Theoretical guarantees on the best-of-n alignment policy, theorem 1.
    """
    if ranking is None or ranking.rows == 1 or outcome.winner is None:
        return 0.0
    width, successors, length = ranking.beam_width, ranking.successors, ranking.chunk_length
    if length is None:
        count = width * successors
        return math.log(count) - (count - 1) / count
    chunks = math.ceil(len(outcome.winner.row.tokens) / length)
    return math.log(width) + chunks * math.log(successors)


def rounded(number: float | None) -> float | None:
    """Return a number to six significant digits, which is what float32 holds; None for what is not finite.

    Another number of rows sums in another order, and may still move the sixth digit.
    """
    if number is None or not math.isfinite(number):
        return None
    return float(f"{number:.6g}") + 0.0


def tracer(trace: TraceWriter | None, assembly: Assembly) -> Callable[..., None] | None:
    """Return a function that writes one line per ranking: every candidate with its value and its fate."""
    if trace is None:
        return None

    def write(
        search: Search, candidates: Sequence[Candidate], parents: Sequence[int], over: bool
    ) -> None:
        rows = [search.hypotheses[slot] for slot in search.beam]
        trace.write(
            {
                "id": search.request.prompt.id,
                "sample": search.request.sample,
                "chunk": search.chunk,
                "over": over,
                "candidates": [
                    {
                        "candidate": candidate.number,
                        "value": rounded(candidate.value),
                        "score": rounded(candidate.score),
                        "rank": parents.index(candidate.number)
                        if candidate.number in parents
                        else None,
                        "finish": hypothesis.row.finish,
                        "tokens": len(hypothesis.row.tokens),
                        "text": assembly.reader.text(hypothesis.row),
                    }
                    for candidate, hypothesis in zip(candidates, rows, strict=True)
                ],
            }
        )

    return write
