"""What a server has drawn, booked on a row: its tokens or its text, and whether it ends the response."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ivgcli.decoding.search import Hypothesis, Search
from ivgcli.models.served import ServedNetwork
from ivgcli.models.text import BROKEN, cut_at, response_text
from ivgcli.serving.replies import Choice
from ivgcli.values import Row


class Booking:
    """Books what a server has drawn.

    Args:
        network: what is here of the base.
        stops: strings that end a response.
        by_ids: whether rows hold the base's token ids; else they hold text, and stand-ins for its tokens.
    """

    def __init__(self, network: ServedNetwork, stops: Sequence[str], by_ids: bool) -> None:
        self.network, self.stops, self.by_ids = network, stops, by_ids

    def text(self, state: Row) -> str:
        """Return a row's response so far."""
        if not self.by_ids:
            return state.text or ""
        return response_text(self.network.tokenizer, state.prompt_ids, state.tokens)

    def chunk(self, search: Search, hypothesis: Hypothesis, choice: Choice, asked: int) -> None:
        """Append a chunk to a row, and see whether it ends the response.

        Args:
            search: whose row it is.
            hypothesis: the row.
            choice: what was drawn.
            asked: tokens that it might have had.
        """
        state = hypothesis.row
        ended = choice.finish in ("eos", "unknown")
        if self.by_ids:
            self._append(state, list(choice.ids or ()), ended)
        else:
            state.tokens += _marks(choice)
            state.text = (state.text or "") + choice.text
        if choice.logprob is None or hypothesis.base_logprob is None:
            hypothesis.base_logprob = None
        else:
            hypothesis.base_logprob += choice.logprob
        self._close(search, state, choice, asked)

    def _append(self, state: Row, ids: list[int], ended: bool) -> None:
        """Append token ids; one that ends the response is among them, whether or not the server tells it."""
        tokenizer = self.network.tokenizer
        assert tokenizer is not None
        closed = bool(ids) and ids[-1] in tokenizer.all_special_ids
        if ended and not closed and tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        state.tokens += ids

    def _close(self, search: Search, state: Row, choice: Choice, asked: int) -> None:
        """Set how a response ended, if it has."""
        cut = cut_at(self.text(state), self.stops)
        if cut is not None:
            state.finish, state.text = "stop", cut
        elif choice.finish == "eos" or (choice.finish == "unknown" and self._ends(state)):
            state.finish = "eos"
        elif choice.finish in ("stop", "unknown"):
            state.finish = "stop"
        elif len(state.tokens) >= search.max_new_tokens or choice.tokens < asked:
            state.finish = "length"  # the server's own limit is one, too
        elif state.text is not None:
            state.text = state.text.rstrip(BROKEN)  # half a character is drawn again

    def _ends(self, state: Row) -> bool:
        """Return whether the latest token is one that ends responses, as far as that is known."""
        return self.by_ids and state.tokens[-1] in self.network.eos_ids

    def token(
        self, search: Search, hypothesis: Hypothesis, token: int, gain: float, logprob: float
    ) -> None:
        """Append one token that was drawn here, and see whether it ends the response.

        Args:
            search: whose row it is.
            hypothesis: the row.
            token: its id.
            gain: log p_guided − log p_base of it.
            logprob: log p_base of it.
        """
        state = hypothesis.row
        state.tokens.append(token)
        hypothesis.kl += gain
        if hypothesis.base_logprob is not None:
            hypothesis.base_logprob += logprob
        if token in self.network.eos_ids:
            state.finish = "eos"
            return
        cut = cut_at(self.text(state), self.stops)
        if cut is not None:
            state.finish, state.text = "stop", cut
        elif len(state.tokens) >= search.max_new_tokens:
            state.finish = "length"


def _marks(choice: Choice) -> list[int]:
    """Return stand-ins for the tokens of a text: as many as there are, and other ones for another text."""
    digest = hashlib.blake2b(choice.text.encode(), digest_size=4).digest()
    first = int.from_bytes(digest, "little") >> 1
    return [first, *[0] * (choice.tokens - 1)] if choice.tokens else []
