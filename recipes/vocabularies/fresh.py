"""Give a language model another tokenizer: 8,192 entries in SentencePiece's manner, learnt from the film reviews.

python recipes/vocabularies/fresh.py MODEL LAYERS REVIEWS FOLDER

MODEL is cut down to its first LAYERS layers. REVIEWS are preference pairs such as
recipes/movies/pairs-train.jsonl. Each new token begins with the mean of the embeddings of the tokens that
MODEL's own tokenizer has for its text; FOLDER is where `ivg train-implicit --init FOLDER` starts from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ivgcli.recipes.training import InitSpec
from ivgcli.training.start import Start

SIZE = 8192
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def reviews(path: Path) -> list[str]:
    """Return every text of the pairs once."""
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(pair[side] for pair in pairs for side in ("chosen", "rejected")))


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a BPE as SentencePiece has it: `▁` for a space, and bytes for what it has not seen."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 256, special_tokens=SPECIALS, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    text = json.loads(core.to_str())
    head = len(SPECIALS)
    # As in SentencePiece, the 256 bytes follow the special tokens.
    vocabulary = {
        piece: token if token < head else token + 256
        for piece, token in text["model"]["vocab"].items()
    }
    vocabulary.update({f"<0x{byte:02X}>": head + byte for byte in range(256)})
    text["model"]["vocab"] = vocabulary
    core = Tokenizer.from_str(json.dumps(text))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def transplanted(start: Start, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return the model with embeddings for another tokenizer, each the mean of the old ones of its text."""
    model = start.load()
    old = model.get_input_embeddings().weight.detach()
    new = old.mean(0).repeat(len(tokenizer), 1)
    for piece, token in tokenizer.get_vocab().items():
        text = bytes([int(piece[3:5], 16)]).decode("latin-1") if piece[:3] == "<0x" else piece
        ids = start.tokenizer(text.replace("▁", " "), add_special_tokens=False)["input_ids"]
        if token >= len(SPECIALS) and ids:
            new[token] = old[ids].mean(0)
    new[tokenizer.eos_token_id] = old[start.tokenizer.eos_token_id]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(new)
    model.tie_weights()
    for name in ("bos", "eos", "pad"):
        for config in (model.config, model.generation_config):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return model


def main(model: str, layers: str, pairs: str, folder: str) -> None:
    """Write the model and its new tokenizer."""
    tokenizer = tokenizer_of(reviews(Path(pairs)))
    start = Start(InitSpec(model=model, layers=int(layers), chat=False))
    transplanted(start, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
