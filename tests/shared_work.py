"""A worker for tests: does its share of one recipe after another, so that the libraries load once.

Usage: python -m tests.shared_work FOLDER NUMBER. FOLDER/plan.json is a list of objects with
`workflow`, `recipe` and `prompts`; the leader of the n-th writes `PORT TOKEN` to FOLDER/n.leader.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ivgcli.cli.crewing import work
from ivgcli.recipes import BonRecipe, GenerateRecipe, SynthesizeRecipe
from ivgcli.records import Prompt
from ivgcli.workers.link import Link
from ivgcli.workflows.best_of_n import best_of_n
from ivgcli.workflows.generate import generate
from ivgcli.workflows.synthesize import draw_and_score

WORKFLOWS: dict[str, tuple[Any, Any]] = {
    "generate": (GenerateRecipe, generate),
    "bon": (BonRecipe, best_of_n),
    "synthesize": (SynthesizeRecipe, draw_and_score),
}


def task(entry: dict[str, Any]) -> Any:
    """Return the workflow of an entry of the plan, ready for writer, narrator and share."""
    schema, workflow = WORKFLOWS[entry["workflow"]]
    prompts = [Prompt(f"p{index}", text, None) for index, text in enumerate(entry["prompts"])]
    return partial(workflow, schema.model_validate(entry["recipe"]), prompts)


def main() -> None:
    """Work for one leader after another."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for index, entry in enumerate(json.loads((folder / "plan.json").read_text())):
        address = folder / f"{index}.leader"
        while not address.exists():
            time.sleep(0.01)
        port, token = address.read_text().split()
        work(Link("127.0.0.1", int(port), token, "a run", number), task(entry))


if __name__ == "__main__":
    main()
