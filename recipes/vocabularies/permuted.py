"""Give a guide the same tokens at other ids, and change nothing else.

python recipes/vocabularies/permuted.py GUIDE FOLDER

GUIDE is a folder of `ivg train-implicit`. In FOLDER its two networks have their ordinary tokens in another order, as
two families of one tokenizer could have them: by a table of ids they guide as before, by plain ids they cannot.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer


def permute(source: Path, folder: Path) -> None:
    """Write one network with its ordinary tokens in another order."""
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    fixed = {token["id"] for token in described["added_tokens"]}
    ordinary = [token for token in described["model"]["vocab"].values() if token not in fixed]
    order = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0)).tolist()
    moved = {token: ordinary[place] for token, place in zip(ordinary, order, strict=True)}
    described["model"]["vocab"] = {
        text: moved.get(token, token) for text, token in described["model"]["vocab"].items()
    }
    layers = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    for layer in layers:
        before = layer.weight.data.clone()
        layer.weight.data[list(moved.values())] = before[list(moved)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Tokenizer.from_str(json.dumps(described)).save(str(folder / "tokenizer.json"))


if __name__ == "__main__":
    guide, out = map(Path, sys.argv[1:])
    for side in ("tuned", "reference"):
        permute(guide / side, out / side)
    shutil.copy(guide / "guide.yaml", out / "guide.yaml")
