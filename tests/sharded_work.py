"""One of two processes that hold a base between them: decodes one recipe after another, in step with the other.

Usage: python -m tests.sharded_work FOLDER NUMBER. FOLDER/plan.json is a list of recipes; process 0
keeps the store, writes its port to FOLDER/port and the records of the n-th to FOLDER/n.json. Where a
recipe's seed is CONTRARY, process 1 draws other tokens and values candidates the other way round.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ivgcli.decoding import step
from ivgcli.errors import IvgError
from ivgcli.recipes import GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.values.explicit import ScalarValue
from ivgcli.workflows.generate import generate
from tests.models import PROMPTS

CONTRARY = 7


class Kept:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.done: set[Any] = set()
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        self.records.append(record)


def decoded(recipe: dict[str, Any]) -> Any:
    """Return the records of a recipe over all prompts, or the sentence that refuses it."""
    writer: Any = Kept()
    prompts = [Prompt(f"p{number}", text, None) for number, text in enumerate(PROMPTS)]
    try:
        summary = generate(GenerateRecipe.model_validate(recipe), prompts, writer)
    except IvgError as problem:
        return str(problem)
    found = sorted(writer.records, key=lambda each: (each["id"], each["sample"]))
    return {"records": found, "passes": [each["passes"] for each in summary.networks.values()]}


@contextlib.contextmanager
def contrary() -> Iterator[None]:
    """Let this process come to other tokens and other values than it should."""
    choose, value = step.choose_tilted, ScalarValue.values

    def other(*given: Any) -> Any:
        choice = choose(*given)
        return choice._replace(tokens=(choice.tokens + 1) % 90)

    step.choose_tilted = other
    ScalarValue.values = lambda *given: -value(*given)
    try:
        yield
    finally:
        step.choose_tilted, ScalarValue.values = choose, value


def main() -> None:
    """Decode everything, and write it if this is process 0."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    port = 0
    while number and not port:
        time.sleep(0.01)
        text = (folder / "port").read_text() if (folder / "port").exists() else ""
        port = int(text) if text.endswith("\n") else 0
    store = dist.TCPStore("127.0.0.1", port, is_master=number == 0, wait_for_workers=False)
    if number == 0:
        (folder / "port").write_text(f"{store.port}\n")
    lasting = timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=number, world_size=2, timeout=lasting)
    for index, recipe in enumerate(json.loads((folder / "plan.json").read_text())):
        deviates = number == 1 and recipe.get("seed") == CONTRARY
        with contrary() if deviates else contextlib.nullcontext():
            found = decoded(recipe)
        if number == 0:
            (folder / f"{index}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
