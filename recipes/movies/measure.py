"""What the trained networks of the film-review study are worth, in two tables.

python recipes/movies/measure.py RUNS RESPONSES...

RUNS is the folder of implicit/ and explicit/; RESPONSES are files of `ivg generate` or `ivg bon`
for the same prompts, the base's first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gold import RATINGS, Judge

from ivgcli.console import table
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.recipes import ModelSpec
from ivgcli.scoring.pointwise import RewardModel
from ivgcli.scoring.sentiment import vader
from ivgcli.statistics import bootstrap_interval, spearman


def lines_of(path: Path) -> list[dict]:
    """Return the records of a file."""
    return [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]


def reward_model(folder: Path, networks: Networks) -> RewardModel:
    """Return the reward model, or the value, that a folder holds."""
    spec = ModelSpec(model=str(folder), chat=False)
    model, tokenizer = networks.classifier(spec)
    return RewardModel(spec.model, model, tokenizer, PromptFormat(tokenizer, chat=False))


def rewards_of(reward: RewardModel, lines: list[dict]) -> torch.Tensor:
    """Return the reward of each response.

    It is taken as whole even where it was cut at the limit: a reward model knows whole reviews only.
    """
    prompts, responses = ([line[name] for line in lines] for name in ("prompt", "response"))
    return torch.tensor(reward.score(prompts, responses, [True] * len(lines)))


def with_interval(numbers: torch.Tensor, statistic=torch.mean) -> str:
    """Return a statistic of numbers (N, …) with half its 95 % interval."""
    low, high = bootstrap_interval(lambda drawn: float(statistic(numbers[drawn])), len(numbers))
    return f"{float(statistic(numbers)):+.2f} ± {(high - low) / 2:.2f}"


def main() -> None:
    """Print both tables."""
    runs = Path(sys.argv[1])
    files = [Path(name) for name in sys.argv[2:]]
    networks, judge = Networks("cpu"), Judge(runs)
    rated = lines_of(RATINGS)
    ratings = torch.tensor([line["rating"] for line in rated])
    rows = []
    rewards = {}
    for name in ("reward-model", "value"):
        rewards[name] = reward_model(runs / "explicit" / name, networks)
        found = torch.stack([rewards_of(rewards[name], rated), ratings], 1)
        rows.append([name, with_interval(found, lambda both: spearman(both[:, 0], both[:, 1]))])
    words = torch.tensor(vader([""] * len(rated), [line["response"] for line in rated]))
    found = torch.stack([words, ratings], 1)
    rows.append(["VADER", with_interval(found, lambda both: spearman(both[:, 0], both[:, 1]))])
    middle, low, high = judge.agreement
    rows.append(["judge (five folds)", f"{middle:+.2f} ± {(high - low) / 2:.2f}"])
    print(f"Spearman correlation with the ratings of {len(rated):,} reviews\n")
    print(table(["", "95 %"], rows))
    if not files:
        return
    judged = []
    for path in files:
        lines = lines_of(path)
        texts = [line["prompt"] + line["response"] for line in lines]
        spoken = torch.tensor(vader([""] * len(lines), [line["response"] for line in lines]))
        judged.append([judge.rate(texts), spoken, rewards_of(rewards["reward-model"], lines)])
    prompts = [(line["prompt"], line["sample"]) for line in lines_of(files[0])]
    rows = []
    for path, columns in zip(files, judged, strict=True):
        lines = lines_of(path)
        assert [(line["prompt"], line["sample"]) for line in lines] == prompts, "the same prompts"
        kl = sum(line["kl"] for line in lines) / len(lines)
        gain = columns[0] - judged[0][0]
        first = path == files[0]
        means = [with_interval(column) for column in columns]
        rows.append([path.stem, *means, "" if first else with_interval(gain), f"{kl:.1f}"])
    print(f"\n{len(prompts)} prompts, one response each; means with their 95 % intervals\n")
    print(table(["", "judge", "VADER", "reward model", "judge − base", "KL"], rows))


if __name__ == "__main__":
    main()
