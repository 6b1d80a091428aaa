"""A completions server that decodes with a tiny network, token by token, over full forwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.models import CHAT, folder, plain, tokenizer

OPTIONS = {"model", "prompt", "messages", "temperature", "top_p", "max_tokens", "seed", "n", "stop"}
OPTIONS |= {"logprobs", "top_k", "repetition_penalty"}
IDS = {"return_token_ids", "return_tokens_as_token_ids"}


@dataclass
class TinyServer:
    """What `Stub.complete` asks; each flag is something that a server may lack."""

    name: str = "llama"
    vocabulary: str = "bytes"
    ids: bool = True
    """Takes prompts as ids and tells those of responses."""
    strings: bool = False
    """Tells top log-probabilities by the tokens' strings, though it knows ids otherwise."""
    count: bool = True
    """Heeds n."""
    logprobs: bool = True
    seeds: bool = True
    most: int = 400
    """Top log-probabilities told at most."""
    knows: set[str] = field(default_factory=lambda: OPTIONS | IDS)
    """Options that are not refused."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        folder(self.name)
        self._next: dict[tuple[int, ...], torch.Tensor] = {}
        self._random = torch.Generator().manual_seed(11)

    def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any] | str:
        unknown = sorted(set(body) - self.knows)
        if unknown:
            return f"Unexpected fields in the request: {unknown}"
        if body.get("logprobs", 0) > self.most:
            return f"Requested sample logprobs of {body['logprobs']}, max allowed: {self.most}"
        if isinstance(body.get("prompt"), list) and not self.ids:
            return "prompt must be a string."
        with self._lock, torch.inference_mode():
            return self._answer(body)

    def _answer(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        reader = tokenizer(self.vocabulary)
        prompt = body.get("prompt")
        if "messages" in body:
            prompt = reader.apply_chat_template(
                body["messages"], chat_template=CHAT, tokenize=False, add_generation_prompt=True
            )
        ids = list(prompt) if isinstance(prompt, list) else reader(prompt)["input_ids"]
        count = body.get("n", 1) if self.count else 1
        draws = self._random
        if self.seeds and "seed" in body:
            draws = torch.Generator().manual_seed(body["seed"])
        choices = [self._choice(body, ids, draws, place) for place in range(count)]
        drawn = sum(choice.pop("drawn") for choice in choices)
        return {
            "choices": choices,
            "usage": {"prompt_tokens": len(ids), "completion_tokens": drawn},
        }

    def _choice(
        self, body: Mapping[str, Any], prompt: Sequence[int], draws: torch.Generator, place: int
    ) -> dict[str, Any]:
        reader, ids, tops, logprobs = tokenizer(self.vocabulary), list(prompt), [], []
        start, finish, text = len(ids), "length", ""
        reason: str | None = None
        while len(ids) - start < body["max_tokens"]:
            known = self._distribution(ids)
            token = int(known.argmax())
            if body["temperature"]:
                shares = torch.softmax(known / body["temperature"], -1)
                token = int(torch.multinomial(shares, 1, generator=draws))
            ids.append(token)
            logprobs.append(float(known[token]))
            best = known.topk(min(int(body.get("logprobs", 1)), known.shape[0]))
            tops.append({**dict(zip(*map(torch.Tensor.tolist, reversed(best)), strict=True))})
            tops[-1].setdefault(token, float(known[token]))
            text = reader.decode(ids[start:], skip_special_tokens=True)
            cut = [text.find(stop) for stop in body.get("stop", ()) if stop in text]
            if cut:
                finish, text, reason = "stop", text[: min(cut)], "a stop string"
                break
            if token == reader.eos_token_id:
                finish = "stop"
                break
        found: dict[str, Any] = {"index": place, "text": text, "finish_reason": finish}
        if "messages" in body:
            found["message"] = {"role": "assistant", "content": found.pop("text")}
        found |= {"stop_reason": reason, "drawn": len(ids) - start}
        if self.logprobs and "messages" not in body:
            found["logprobs"] = {
                "tokens": [self._named(token, body) for token in ids[start:]],
                "token_logprobs": logprobs,
                "top_logprobs": [
                    {self._named(token, body): logprob for token, logprob in each.items()}
                    for each in tops
                ],
            }
        if body.get("return_token_ids") and self.ids:
            found["token_ids"] = ids[start:]
        return found

    def _named(self, token: int, body: Mapping[str, Any]) -> str:
        if body.get("return_tokens_as_token_ids") and self.ids and not self.strings:
            return f"token_id:{token}"
        return str(tokenizer(self.vocabulary).decode([token]))

    def _distribution(self, ids: Sequence[int]) -> torch.Tensor:
        key = tuple(ids)
        if key not in self._next:
            logits = plain(self.name)(torch.tensor([list(ids)])).logits[0, -1].float()
            self._next[key] = torch.log_softmax(logits, -1)
        return self._next[key]


def lines(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as JSON lines."""
    return "".join(json.dumps(each) + "\n" for each in records)
