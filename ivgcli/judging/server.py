"""A judge behind an OpenAI-compatible server: many requests in flight, each until it is answered."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from ivgcli.errors import ModelError
from ivgcli.judging import Answer, Question
from ivgcli.judging.verdicts import logprob_table
from ivgcli.recipes import JudgeSpec
from ivgcli.recipes.judges import JudgeTemplate
from ivgcli.recipes.judging import Verdict
from ivgcli.serving.flight import Flight
from ivgcli.serving.server import UNANSWERED, Fault, Server

TOPS = (20, 5)
"""Most probable tokens to ask for: as many as OpenAI and vLLM give, or what AlpacaEval 2 reads."""

Options = Mapping[str, Any]


class ServerJudge:
    """A language model behind an OpenAI-compatible server.

    Every question is asked until it is answered, `spec.attempts` times at most. The client itself
    tries again after timeouts, broken connections and the statuses 408, 409, 429 and 5xx, and waits
    as long as Retry-After says; what it takes for an answer and is none (a web page, broken JSON, no
    choices, no text) is tried again here. Any other status is final. Before the first answer, a
    server that refuses `logprobs`, `seed` or `max_tokens` by name is asked without.

    Args:
        spec: server, workers, attempts, timeout and rate.
        template: labels, and the length of an answer.
        verdict: where a verdict is read; `text` asks for no log-probabilities.
        seed: sent with each request, and of the pauses' jitter.
        sleep: waits so many seconds.

    Raises:
        ModelError: the client is not installed, there is no key, or the address is none.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        template: JudgeTemplate,
        verdict: Verdict = "auto",
        seed: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._server = Server(
            str(spec.server), spec.attempts, spec.timeout, spec.requests_per_minute, sleep
        )
        self.name = self._server.name
        self._workers, self._template, self._verdict = spec.workers, template, verdict
        self._seed = seed
        self._options: Options = {"temperature": 0.0, "max_tokens": template.max_tokens}
        self._options = {**self._options, "seed": seed}
        if verdict != "text":
            self._options = {**self._options, "logprobs": True, "top_logprobs": TOPS[0]}
        self._lock = threading.Lock()
        self._weighed = False

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Yield each question's place with its answer, in the order of finishing.

        Leaving the iterator early abandons what is under way; no new request is made then.

        Raises:
            ModelError: the server refuses the key or the model, gives no log-probabilities where they
                are needed, or has answered none of the first 16 questions.
        """
        over = threading.Event()
        client = self._server.client(over)
        flight = Flight(min(self._workers, len(questions)), over, client.close)
        try:
            for place, question in enumerate(questions):
                flight.submit(place, functools.partial(self._answer, client, question, over))
            for _ in questions:
                landed = flight.land()
                if landed is not None:
                    yield landed
        finally:
            flight.close()

    def _answer(self, client: Any, question: Question, over: threading.Event) -> Answer:
        """Return a question's answer, or its failure once all attempts are spent."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        asked = [dict(message) for message in question.messages]
        options = self._options

        def post(client: Any) -> Any:
            nonlocal options
            options = self._options
            chat = client.chat.completions.with_raw_response
            return chat.create(model=self._server.model, messages=asked, **options)

        found = self._server.ask(
            client,
            post,
            lambda reply: self._read(reply, usage),
            over,
            random.Random(f"{self._seed}\x1f{question.name}"),
            lambda error: self._adapt(error, options),
        )
        return self._lost(found.what, usage) if isinstance(found, Fault) else found

    def _lost(self, sentence: str, usage: Mapping[str, int]) -> Answer:
        """Return a failure, or raise if the server has never answered anything else."""
        unanswered = self._server.give_up()
        if not self._server.answered and unanswered >= UNANSWERED:
            what = f"answers none of the first {unanswered} questions; the last: {sentence}"
            raise ModelError(self.name, what, "check the server, then start again with --resume")
        return Answer(usage=usage, failure=f"{self.name}: {sentence}")

    def _adapt(self, error: Any, options: Options) -> bool:
        """Return whether to ask again at once, in another way than with `options`."""
        with self._lock:
            if options is not self._options:
                return True  # another worker has met the same refusal
            if error.status_code not in (400, 422) or self._server.answered:
                return False
            changed = _without(f"{error.message} {error.body}".lower(), options)
            if changed is None:
                return False
            if self._verdict == "logprobs" and "logprobs" not in changed:
                self._give_up_logprobs()
            self._options = changed
            return True

    def _read(self, reply: Any, usage: dict[str, int]) -> Answer | Fault:
        """Return the answer in a reply, or what is wrong with it; its tokens are counted either way."""
        if not isinstance(reply, dict):
            return Fault("gave no object")
        counted = reply.get("usage")
        for name in usage:
            count = counted.get(name) if isinstance(counted, dict) else None
            usage[name] += count if isinstance(count, int) else 0
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            said = reply.get("error")
            detail = f" ({self._server.quoted(str(said))})" if said else ""
            return Fault(f"gave an answer without choices{detail}")
        message = choice.get("message")
        known = message if isinstance(message, dict) else {}
        fields = (known.get("content"), known.get("refusal"))
        text = next((each for each in fields if isinstance(each, str)), None)
        if text is None:
            return Fault("gave an answer without text")
        table = logprob_table(self._template, choice) if self._verdict != "text" else None
        if table is not None:
            self._weighed = True
        elif self._verdict == "logprobs":
            if not self._weighed:
                self._give_up_logprobs()
            return Fault("gave an answer without log-probabilities")
        return Answer(text, table, usage)

    def _give_up_logprobs(self) -> NoReturn:
        """Say that the wanted verdict cannot be had here."""
        what = "the server gives no log-probabilities, and verdict: logprobs needs them"
        raise ModelError(self.name, what, "verdict: text, or a server such as vLLM")


def _without(refusal: str, options: Options) -> Options | None:
    """Return options less the one that a refusal names; None if it names none of them."""
    if "logprobs" in options and "logprobs" in refusal:
        fewer = next((top for top in TOPS if top < options["top_logprobs"]), None)
        if fewer is not None:
            return {**options, "top_logprobs": fewer}
        return {name: each for name, each in options.items() if "logprobs" not in name}
    if "max_tokens" in options and "max_completion_tokens" in refusal and "unsupp" in refusal:
        rest = {name: each for name, each in options.items() if name != "max_tokens"}
        return {**rest, "max_completion_tokens": options["max_tokens"]}
    if "seed" in options and "seed" in refusal:
        return {name: each for name, each in options.items() if name != "seed"}
    return None
