"""Print the table of the demo: mean sentiment per mode, its price in speed and in divergence.

python recipes/critics/show.py runs/demo/*.jsonl
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

from ivgcli.console import table
from ivgcli.scoring.sentiment import vader

STUDENT = {16: 2.131, 24: 2.069, 32: 2.040, 48: 2.012}
"""97.5 % quantiles of Student's t for n responses; 1.96 beyond."""


def interval(numbers: list[float]) -> str:
    """Return mean and half-width of the 95 % interval of the mean."""
    half = STUDENT.get(len(numbers), 1.96) * statistics.stdev(numbers) / math.sqrt(len(numbers))
    return f"{statistics.mean(numbers):+.2f} ± {half:.2f}"


def choice_bound(recipe: dict, tokens: float) -> float:
    """Return an upper bound, in nats, on the divergence that choosing among candidates adds.

    Best of N: ln N - (N-1)/N. A chunk search: at most W·K^C of its candidates can carry a given
    response, C being its number of chunks, so its probability grows by no larger factor.
    """
    if "best_of" in recipe:
        count = recipe["best_of"]
        return math.log(count) - (count - 1) / count
    if "cbs" not in recipe["mode"] and recipe["mode"] != "ivg":
        return 0.0
    chunk = recipe["chunk"]
    chunks = math.ceil(tokens / chunk["chunk_length"])
    return math.log(chunk["beam_width"]) + chunks * math.log(chunk["successors"])


def line(path: Path) -> list[str]:
    """Return the row of one output file."""
    import yaml

    records = [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]
    recipe = yaml.safe_load(path.with_name(path.name + ".recipe.yaml").read_text("utf-8"))
    account = json.loads(path.with_name(path.name + ".run.json").read_text("utf-8"))
    texts = [record["response"] for record in records]
    tokens = statistics.mean(record["tokens"] for record in records)
    drift = statistics.mean(record["kl"] for record in records)
    bound = choice_bound(recipe, tokens)
    return [
        path.stem.partition("-")[2],
        interval(vader([""] * len(texts), texts)),
        f"{account['tokens'] / account['seconds']:.0f}",
        f"{drift:.1f}",
        f"≤ {bound:.1f}" if bound else "0",
        str(len(records)),
    ]


def main() -> None:
    """Print the table of the files named on the command line."""
    columns = ["mode", "sentiment (95 %)", "tokens/s", "KL tokens", "KL choice", "n"]
    print(table(columns, [line(Path(name)) for name in sorted(sys.argv[1:])]))


if __name__ == "__main__":
    main()
