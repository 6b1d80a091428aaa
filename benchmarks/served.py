"""Throughput of a served base by the number of requests in flight.

    python -m benchmarks.served openai:http://127.0.0.1:8000/v1#m --tokenizer FOLDER

prints one line for each number: responses and drawn tokens a second, and how long one request took on the mean.
Nothing is compared; the numbers are the server's as much as ours.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from ivgcli.recipes import GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.workflows.generate import generate

IN_FLIGHT = (1, 8, 32)
OPENINGS = ("The film opens", "An effective but", "Once upon a time", "In the end, the actors")


class Counted:
    """Counts what a run writes, and keeps nothing."""

    def __init__(self) -> None:
        self.done: set[tuple[str, int]] = set()
        self.records = self.requests = self.tokens = 0

    def write(self, record: dict[str, Any]) -> None:
        """Count one record."""
        if record.get("error") is None:
            self.records += 1
            self.requests += record["usage"]["requests"]
            self.tokens += record["usage"]["completion_tokens"]


def measured(base: dict[str, Any], in_flight: int, count: int, keys: dict[str, Any]) -> Counted:
    """Return what a run with so many requests in flight wrote."""
    given = {**base, "server": {"in_flight": in_flight}}
    recipe = GenerateRecipe.model_validate({"base": given, **keys})
    # Other prompts each time, so that no answer comes from the server's memory of the run before.
    texts = [f"{OPENINGS[place % len(OPENINGS)]} {in_flight}.{place}" for place in range(count)]
    counted = Counted()
    prompts = [Prompt(str(place), text, None, {}) for place, text in enumerate(texts)]
    generate(recipe, prompts, counted)  # type: ignore[arg-type]
    return counted


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="openai:http://HOST:PORT/v1#MODEL")
    parser.add_argument("--tokenizer")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--value", help="module:function: search in chunks of 8 with W = K = 2")
    given = parser.parse_args()
    base = {"model": given.base} | ({"tokenizer": given.tokenizer} if given.tokenizer else {})
    keys: dict[str, Any] = {"sampling": {"max_new_tokens": given.max_new_tokens}}
    if given.value:
        keys |= {"mode": "cbs-e", "guide": {"explicit": {"callable": given.value}}}
        keys["chunk"] = {"beam_width": 2, "successors": 2, "chunk_length": 8}
    print("in flight   responses/s   drawn tokens/s   requests   s a request")
    for in_flight in IN_FLIGHT:
        began = time.monotonic()
        counted = measured(base, in_flight, given.prompts, keys)
        seconds = time.monotonic() - began
        each = seconds * in_flight / max(counted.requests, 1)
        rates = f"{counted.records / seconds:13.2f} {counted.tokens / seconds:16.1f}"
        print(f"{in_flight:9d} {rates} {counted.requests:10d} {each:13.3f}", flush=True)


if __name__ == "__main__":
    main()
