"""A judge that is loaded here: verdicts from its probabilities, or from what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from ivgcli.decoding import Limits, Mode
from ivgcli.decoding.engine import Engine
from ivgcli.decoding.search import Request
from ivgcli.errors import ModelError, RecipeError, RecordError
from ivgcli.judging import Answer, Question
from ivgcli.judging.labels import is_blank, spellings
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from ivgcli.recipes.judges import JudgeTemplate
from ivgcli.recipes.judging import Verdict
from ivgcli.values import Prompted
from ivgcli.workflows.assembly import eos_ids
from ivgcli.workflows.capacity import affordable_rows

ROWS = 32
"""Questions read at once, at most: they are long, and fill a pass before that."""

BLANKS = 2
"""Tokens of nothing but space that may stand before a verdict, such as LlamaGuard's line breaks."""


class LocalJudge:
    """A language model that is asked here.

    With log-probabilities, nothing is drawn: each label's probability is read from the logits where
    the answer begins, exactly, however improbable it is. They are normalised among the labels, so a
    model that does not know how to answer still has a preference; `verdict: text` shows whether it
    does. With text, the most probable answer is written.

    Args:
        spec: the model, with its own system prompt or template if it has one.
        networks: where it is loaded.
        template: labels, and the length of an answer.
        verdict: where a verdict is read.
        rows: questions read at once; None: what memory holds.

    Raises:
        ModelError: the model cannot be had or driven, or cannot write the labels.
        RecipeError: log-probabilities are wanted of a template that lets its judge argue first.
    """

    def __init__(
        self,
        spec: ModelSpec,
        networks: Networks,
        template: JudgeTemplate,
        verdict: Verdict = "auto",
        rows: int | None = None,
    ) -> None:
        self.name = spec.model
        self._template = template
        self._rows = rows
        self._weighs = verdict != "text" and template.verdict_first
        if verdict == "logprobs" and not self._weighs:
            what = f"logprobs: {template.name} lets its judge argue before the verdict"
            raise RecipeError("verdict", what, "verdict: text, or a template with verdict_first")
        network, adapter = networks.language_model(spec)
        tokenizer = network.tokenizer
        if template.conversation and not tokenizer.chat_template:
            what = f"has no chat template, and {template.name} asks through one"
            raise ModelError(self.name, what, "use a guard, or --template safety")
        chat = True if template.conversation else spec.chat
        form = JudgeFormat(tokenizer, spec.template, spec.system, chat)
        self._stream = Stream(network, form, 1, adapter)
        self._spellings = self._all_spellings() if self._weighs else []

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """Yield each question's place with its answer; the longest are answered first.

        A question that the model cannot take fails alone. Log-probabilities are of labels, in nats.
        """
        taken: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            ids = self._encoded(question)
            if isinstance(ids, str):
                yield place, Answer(failure=ids)
            else:
                taken[place] = ids
        if not taken:
            return
        # The longest come first, so that the cache has its final size at once.
        order = sorted(taken, key=lambda place: -len(taken[place]))
        if not self._weighs:
            yield from self._written(questions, taken, order)
            return
        rows = self._affordable(taken, order)
        self._stream.resize(rows)
        for begin in range(0, len(order), rows):
            batch = order[begin : begin + rows]
            weighed = self._weigh([taken[place] for place in batch])
            for place, logprobs in zip(batch, weighed, strict=True):
                usage = {"prompt_tokens": len(taken[place]), "completion_tokens": 0}
                if torch.isfinite(logprobs).all():
                    labels = (label for label, _ in self._spellings)
                    known = dict(zip(labels, logprobs.tolist(), strict=True))
                    yield place, Answer(None, known, usage)
                else:
                    what = f"{self.name}: gave a number that is not finite"
                    yield place, Answer(failure=f"{what} → use a wider --dtype", usage=usage)

    def _encoded(self, question: Question) -> list[int] | str:
        """Return a question's token ids, or why the model cannot take it."""
        asked = [dict(message) for message in question.messages]
        try:
            ids = self._stream.prompts.encode(question.text, asked, question.name)
        except RecordError as error:
            return str(error)
        limit = self._stream.network.context - self._room()
        if len(ids) > limit:
            what = f"the question has {len(ids):,} tokens, and {self.name} takes {limit:,}"
            return f"{what} → use a judge with a longer context"
        return ids

    def _room(self) -> int:
        """Return the tokens that have to fit in behind a question."""
        longest = max((len(way) for _, ways in self._spellings for way in ways), default=0)
        return BLANKS + longest if self._weighs else self._template.max_tokens

    def _affordable(self, taken: dict[int, list[int]], order: Sequence[int]) -> int:
        """Return how many questions to read at once."""
        if self._rows is not None:
            return self._rows
        longest = len(taken[order[0]]) + self._room()
        return min(ROWS, len(order), affordable_rows([self._stream], longest, 1))

    def _all_spellings(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Return each label with the token sequences that write it."""
        tokenizer = self._stream.network.tokenizer
        found = []
        for label in (each for side in self._template.labels.values() for each in side):
            ways = spellings(tokenizer, label)
            if not ways:
                what = f'has no tokens for the verdict "{label}" of {self._template.name}'
                raise ModelError(self.name, what, "use a template with other labels")
            found.append((label, ways))
        return found

    @torch.inference_mode()
    def _weigh(self, ids: Sequence[list[int]]) -> Tensor:
        """Return the log-probability (B, L) float64 of each label behind each question."""
        stream, rows = self._stream, list(range(len(ids)))
        read_all([Reading(stream, rows, [list(each) for each in ids], prompt=True)])
        for _ in range(BLANKS):
            likely = stream.outputs(rows).argmax(-1).tolist()
            blank = [row for row in rows if is_blank(stream.network.tokenizer, likely[row])]
            if not blank:
                break
            read_all([Reading(stream, blank, [[likely[row]] for row in blank])])
        first = torch.log_softmax(stream.outputs(rows), -1).double()
        columns = []
        for _, ways in self._spellings:
            found = [first[:, way[0]] + self._rest(rows, way) for way in ways]
            columns.append(torch.stack(found, -1).logsumexp(-1))
        return torch.stack(columns, -1).cpu()

    def _rest(self, rows: Sequence[int], way: Sequence[int]) -> Tensor:
        """Return the log-probability (B,) of a spelling's tokens after its first, given that."""
        stream = self._stream
        if len(way) == 1:
            return torch.zeros(len(rows), dtype=torch.float64, device=stream.network.device)
        tails = torch.tensor(way[:-1]).expand(len(rows), 1, -1)
        hidden = stream.peek(rows, tails).hidden[:, 0]
        logprobs = torch.log_softmax(stream.network.outputs(hidden), -1).double()
        wanted = torch.tensor(way[1:], device=logprobs.device).expand(len(rows), -1)
        return logprobs.gather(-1, wanted[..., None])[..., 0].sum(-1)

    def _written(
        self, questions: Sequence[Question], taken: dict[int, list[int]], order: Sequence[int]
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the most probable answers, as the decoding engine writes them."""
        network = self._stream.network
        width = min(network.width, max(network.tokenizer.get_vocab().values()) + 1)
        limits = Limits(self._template.max_tokens, temperature=0.0)
        ends = eos_ids(network)
        rows = self._affordable(taken, order)
        engine = Engine(self._stream, Mode(), limits, ends, rows=rows, width=width)
        requests = []
        for place in order:
            question = questions[place]
            asked: Any = tuple(dict(message) for message in question.messages)
            requests.append(Request(Prompted(str(place), question.text, asked, question.text)))
        for outcome in engine.run(requests):
            place = int(outcome.request.prompt.id)
            if outcome.winner is None:
                yield place, Answer(failure=outcome.failure)
                continue
            written = len(outcome.winner.row.tokens)
            usage = {"prompt_tokens": len(taken[place]), "completion_tokens": written}
            yield place, Answer(outcome.text, None, usage)


class JudgeFormat(PromptFormat):
    """How a judge is shown a question: as a prompt, or as a conversation that it is to assess."""

    def render(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str = "record"
    ) -> str:
        """Return what the judge reads; arguments and errors as for `PromptFormat.render`.

        A last message of the assistant is the response that is judged, and is closed like any other;
        a guard's template asks its question behind it.
        """
        if not messages or messages[-1]["role"] != "assistant":
            return super().render(text, messages, where)
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as problem:
            what = f"the chat template refuses the conversation ({problem})"
            raise RecordError(where, what, "check its roles and their order") from problem
        return rendered
