"""The leader's side: starts workers or waits for them, hands out work, takes in what they finish.

The leader loads no model. It alone writes, so that an output looks as it does with one process,
whatever becomes of the workers: what one has handed over is on the disk, and what it had begun is
begun by another.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ivgcli.errors import IvgError, ModelError, RecordError
from ivgcli.records.lines import decode, encode
from ivgcli.workers.dispenser import Dispenser
from ivgcli.workers.link import keep_alive
from ivgcli.workers.team import Hand, Job, Team

LONGEST_LINE = 1 << 28
"""Bytes of a message, at most."""

INTRODUCTION = 10.0
"""Seconds in which whoever connects must say who it is."""

INTERVAL = 0.5
"""Seconds in which a message arrives on one machine."""

FAREWELL = 5.0
"""Seconds that workers have to end when all is done, or when they are told to."""

LATECOMERS = 60.0
"""Seconds that a leader waits at its end for processes of its launcher that have never come."""


class Crashed(Exception):
    """A worker ended with a bug; its text is the worker's traceback."""


class Crew:
    """Leads the workers of one run.

    Args:
        team: who works.
        job: what there is to do.
    """

    def __init__(self, team: Team, job: Job) -> None:
        self.team = team
        self.job = job
        count = len(team.environments) + team.others
        self.dispenser = Dispenser(job.units, count, job.portions)
        self.hands = {number: Hand(number) for number in range(count)}
        self._token = secrets.token_hex(16)
        self._inbox: asyncio.Queue[tuple[int, Mapping[str, Any]]] = asyncio.Queue()
        self._said: set[str] = set()
        self._began: float | None = None
        self._done_at = 0.0
        self._watches: set[asyncio.Task[None]] = set()
        self._meetings: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    @property
    def seconds(self) -> float:
        """From the first work handed out to the last that came back."""
        return 0.0 if self._began is None else max(0.0, self._done_at - self._began)

    def run(self) -> None:
        """Have everything done.

        Raises:
            IvgError: what a worker raised, or all have died.
            Crashed: a worker had a bug.
        """
        asyncio.run(self._lead())

    @property
    def accounts(self) -> dict[int, dict[str, Any]]:
        """What the workers that came to their end say of their work, by number."""
        return {number: hand.account for number, hand in self.hands.items() if hand.ended}

    @property
    def lost(self) -> list[int]:
        """The numbers of the workers that died."""
        return [number for number, hand in self.hands.items() if hand.lost]

    async def _lead(self) -> None:
        """Start, serve until all is done, and part."""
        server = await asyncio.start_server(
            self._meet, self.team.host, 0, limit=LONGEST_LINE, start_serving=True
        )
        try:
            port = server.sockets[0].getsockname()[1]
            found = self.team.opened(port, self._token)
            for number, changes in enumerate(self.team.environments):
                await self._start(self.hands[number], {**found, **changes})
            while not self.dispenser.over:
                self._hear(*await self._inbox.get())
                self._serve()
            await self._part()
        finally:
            server.close()
            await self._dismiss()

    async def _start(self, hand: Hand, environment: Mapping[str, str]) -> None:
        """Start a worker on this machine, out of reach of a terminal's Ctrl-C: ending it is for us."""
        hand.process = await asyncio.create_subprocess_exec(
            *self.team.command,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.__stderr__,  # stdout is for responses
            start_new_session=True,
        )
        task = asyncio.create_task(self._watch(hand.number, hand.process))
        self._watches.add(task)

    async def _watch(self, number: int, process: asyncio.subprocess.Process) -> None:
        """Tell when a worker's process is over."""
        code = await process.wait()
        if self.hands[number].writer is None:
            await asyncio.sleep(INTERVAL)  # what it said to us just before may still be on its way
        await self._inbox.put((number, {"exit": code}))

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let a worker in, and pass on what it says until it is gone."""
        meeting = asyncio.current_task()
        assert meeting is not None, "a server's callbacks are tasks"
        self._meetings[meeting] = writer
        try:
            number = await self._admit(reader, writer)
            if number is not None:
                await self._listen(number, reader)
        finally:
            writer.close()
            del self._meetings[meeting]

    async def _admit(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> int | None:
        """Return the number of the worker that has connected; None if it is a stranger."""
        try:
            hello = decode(await asyncio.wait_for(reader.readline(), INTRODUCTION))
        except (ValueError, OSError, asyncio.TimeoutError):
            return None
        if not secrets.compare_digest(str(hello.get("token")), self._token):
            return None
        keep_alive(writer.get_extra_info("socket"))
        number = int(hello["worker"])
        self.hands[number].writer = writer
        await self._inbox.put((number, {"hello": hello["run"]}))
        return number

    async def _listen(self, number: int, reader: asyncio.StreamReader) -> None:
        """Pass on what a worker says until it is gone."""
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                await self._inbox.put((number, decode(line)))
        except OSError:
            pass  # its machine is gone
        await self._inbox.put((number, {"gone": True}))

    def _hear(self, number: int, message: Mapping[str, Any]) -> None:
        """Take in one message."""
        hand, narrator = self.hands[number], self.job.narrator
        if "given" in message:
            self._accept(hand, message["given"])
        elif "ask" in message:
            hand.room = message["ask"]
        elif "tokens" in message:
            hand.tokens, hand.under_way = message["tokens"], message["under_way"]
            narrator.note(self._pace(), self._under_way())
        elif "trace" in message:
            self.job.trace(message["trace"])
        elif "say" in message:
            self._tell(message["say"], narrator.say)
        elif "warn" in message:
            self._tell(message["warn"], narrator.warn)
        elif "end" in message:
            hand.account, hand.ended = message["end"], True
        elif "hello" in message:
            if message["hello"] != self.team.run:
                what = f"worker {number} has another recipe or other records than the first"
                raise RecordError("", what, "start all processes with one command")
        elif "error" in message:
            error = IvgError(*message["error"])
            if not self.dispenser.over:
                raise error
            hand.lost = True  # while it was loading, the others have done everything
            narrator.warn(f"worker {number}: {error}")
        elif "bug" in message:
            raise Crashed(message["bug"])
        elif "gone" in message or "exit" in message:
            hand.code = message.get("exit", hand.code)
            hand.writer = None if "gone" in message else hand.writer
            # Of our own processes we wait for both: what they have said, and how they ended.
            if hand.writer is None and (hand.process is None or hand.code is not None):
                self._miss(hand)

    def _accept(self, hand: Hand, given: Any) -> None:
        """Write what finishes a unit, once."""
        if self.dispenser.finish(self.job.unit_of(given)):
            self.job.accept(hand.number, given)
            self._done_at = time.monotonic()
            count = len(given) if isinstance(given, list) else 1
            self.job.narrator.advance(count, self._pace(), self._under_way())

    def _serve(self) -> None:
        """Answer all questions for work that can be answered."""
        for hand in self.hands.values():
            if not hand.room or hand.writer is None:
                continue
            units = self.dispenser.take(hand.number, hand.room)
            if units:
                self._began = time.monotonic() if self._began is None else self._began
                hand.writer.write(encode({"units": units}))
            elif self.dispenser.over:
                hand.writer.write(encode({"over": True}))
            else:
                continue
            hand.room = 0

    def _miss(self, hand: Hand) -> None:
        """Book a worker as lost, unless it has ended as it should.

        Raises:
            ModelError: it was the last.
            SystemExit: it has ended of itself, and has said why.
        """
        if hand.ended or hand.lost:
            return
        if hand.code is not None and hand.code > 0:
            raise SystemExit(hand.code)
        hand.lost, hand.room, hand.under_way = True, 0, 0.0
        begun = self.dispenser.lose(hand.number)
        if self.dispenser.over:
            return
        how = f"was killed ({signal.Signals(-hand.code).name})" if hand.code else "is gone"
        if self.dispenser.workers == 0:
            what = f"worker {hand.number} {how}, and it was the last"
            hint = "see that memory suffices, and go on with --resume"
            raise ModelError("--gpus", what, hint)
        told = f"the others do what it had begun, {begun} of {len(self.job.units)}"
        self.job.narrator.warn(f"worker {hand.number} {how}: {told}")

    def _tell(self, sentence: str, tell: Callable[[str], None]) -> None:
        """Tell what several workers may say, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            tell(sentence)

    def _pace(self) -> str:
        """Return the tokens a second of all together."""
        if self._began is None:
            return "loading models"
        tokens = sum(hand.tokens for hand in self.hands.values())
        return f"{tokens / max(time.monotonic() - self._began, 1e-9):,.0f} tokens/s"

    def _under_way(self) -> float:
        """Return how many responses' worth of work is done on those not finished."""
        return sum(hand.under_way for hand in self.hands.values())

    async def _part(self) -> None:
        """Let everybody tell what the work came to.

        Of our own processes, those that are still loading are not waited for. Others are, since
        their launcher takes one for failed that does not end by itself.
        """
        self._serve()
        began = time.monotonic()
        while waited := [each for each in self.hands.values() if not each.ended and not each.lost]:
            others = [each for each in waited if each.process is None]
            if any(each.writer is not None for each in others):
                left = None
            else:
                left = began + (LATECOMERS if others else FAREWELL) - time.monotonic()
            try:
                self._hear(*await asyncio.wait_for(self._inbox.get(), left))
            except asyncio.TimeoutError:
                return
            self._serve()

    async def _dismiss(self) -> None:
        """End the processes that we have started and are still there, and all connections."""
        running = [
            hand.process
            for hand in self.hands.values()
            if hand.process is not None and hand.process.returncode is None
        ]
        for tell in ("terminate", "kill"):
            for process in running:
                if process.returncode is None:
                    getattr(process, tell)()
            waiting = [asyncio.ensure_future(process.wait()) for process in running]
            if waiting:
                await asyncio.wait(waiting, timeout=FAREWELL)
        for task in self._watches:
            task.cancel()
        for writer in self._meetings.values():
            writer.close()  # and who listens to it is told that nothing more will come
        await asyncio.gather(*self._watches, *self._meetings, return_exceptions=True)
