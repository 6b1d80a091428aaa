"""However a step's batch is shared out, the same network is learnt.

Run as a script, this file trains in every process it is started in and the first one saves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from ivgcli.recipes.training import ValueSpec
from ivgcli.training.scorer import as_scorer
from ivgcli.training.sequences import Example
from ivgcli.training.value_trainer import ValueTrainer, rows

ROOT = Path(__file__).parents[3]
STEPS = 5
WORDS = 6


def learn(start: str, target: str, each: int, passes: int, place: str) -> dict[str, torch.Tensor]:
    """Train for a few steps on batches of four, which are `each` × `passes` × processes.

    Responses have one to five tokens, so that a batch's parts differ in width and in their number
    of prefixes.
    """
    random = torch.Generator().manual_seed(0)
    examples = []
    ahead = []
    for number in range(4 * STEPS):
        size = int(torch.randint(1, 6, (), generator=random))
        tokens = torch.randint(2, WORDS, (size + 2,), generator=random).tolist()
        reward = float(torch.randn((), generator=random))
        examples.append(Example(f"r{number}", tokens[:2], tokens[2:], False, reward))
        chances = torch.rand(size + 1, 3, generator=random)
        ahead.append((torch.randint(2, WORDS, (size + 1, 3), generator=random), chances))
    arguments = TrainingArguments(
        output_dir=place,
        max_steps=STEPS,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=passes,
        learning_rate=0.1,
        # Adam's division would turn rounding of a vanishing gradient into a step of full length.
        optim="sgd",
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    scorer = as_scorer(start, "scalar", WORDS)
    given = rows(examples, ahead=ahead)
    ValueTrainer(scorer, arguments, ValueSpec(target=target), 0, given).train()
    return {name: weight.detach().clone() for name, weight in scorer.named_parameters()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("target", ["fudge", "td-lambda", "cd-q"])
def test_accumulated_passes_are_one_batch(target):
    from tests.models import folder, scratch

    start, place = folder("words"), str(scratch("passes"))
    before = {
        name: weight.detach()
        for name, weight in as_scorer(start, "scalar", WORDS).named_parameters()
    }
    whole = learn(start, target, 4, 1, place)
    assert furthest(before, whole) > 1e-2
    assert furthest(whole, learn(start, target, 2, 2, place)) < 1e-6


@pytest.mark.long
def test_two_processes_are_one_batch():
    """cd-q has the most to go wrong: a second pass, of another width in every process."""
    from tests.models import folder, scratch

    start, place = folder("words"), scratch("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, start, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for target in ("fudge", "cd-q"):
        shared = torch.load(place / f"{target}.pt")
        assert shared.pop("processes") == 2
        assert furthest(learn(start, target, 4, 1, str(place)), shared) < 1e-6


if __name__ == "__main__":
    for objective in ("fudge", "cd-q"):
        learnt = learn(sys.argv[1], objective, 2, 1, sys.argv[2])
        if os.environ["RANK"] == "0":
            count = torch.distributed.get_world_size()
            torch.save({**learnt, "processes": count}, Path(sys.argv[2]) / f"{objective}.pt")
    torch.distributed.destroy_process_group()
