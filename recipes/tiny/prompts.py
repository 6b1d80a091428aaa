"""Write prompts for the tiny study: the first two words of film-review clauses.

python recipes/tiny/prompts.py REVIEWS MODEL FOLDER

FOLDER gets prompts-train.jsonl and prompts-held-out.jsonl, of different beginnings. Only words that
the tokenizer in MODEL knows are used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from make_models import phrases
from transformers import AutoTokenizer

TRAIN, HELD_OUT = 240, 48


def main() -> None:
    """Write both files."""
    reviews, model, folder = map(Path, sys.argv[1:4])
    known = AutoTokenizer.from_pretrained(model).get_vocab()
    begun = dict.fromkeys(
        " ".join(words[:2])
        for words in phrases(reviews)
        if all(word in known for word in words[:2])
    )
    chosen = list(begun)[: TRAIN + HELD_OUT]
    for name, texts in (("train", chosen[:TRAIN]), ("held-out", chosen[TRAIN:])):
        lines = [json.dumps({"prompt": text}) for text in texts]
        (folder / f"prompts-{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
