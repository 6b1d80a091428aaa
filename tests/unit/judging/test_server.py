"""A judge behind a server that fails in every way a server can."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")

from ivgcli.errors import ModelError
from ivgcli.judging import Answer, Question
from ivgcli.judging.local import LocalJudge
from ivgcli.judging.server import ServerJudge
from ivgcli.judging.verdicts import read_verdict
from ivgcli.models.loading import Networks
from ivgcli.recipes import JudgeSpec, ModelSpec
from ivgcli.recipes.judges import JudgeTemplate, read_template
from ivgcli.serving.pace import Pace
from ivgcli.serving.server import UNANSWERED
from tests.models import CORPUS, folder
from tests.unit.judging.stub import Stub, always, nth

ALPACA = read_template("alpaca-eval", "pairs")
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server is given the same key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def questions(count: int) -> list[Question]:
    """Questions that a server can tell apart."""
    return [
        Question(str(n), ({"role": "user", "content": f"q{n}"},), f"q{n}") for n in range(count)
    ]


def judge(
    stub: Stub, verdict: str = "auto", slept: list[float] | None = None, **settings: Any
) -> ServerJudge:
    """A judge of `stub`; its own pauses are written down and not made."""
    spec = JudgeSpec.model_validate({"server": f"openai:{stub.address}#gpt", **settings})
    pauses = [] if slept is None else slept
    return ServerJudge(spec, ALPACA, verdict, seed=3, sleep=pauses.append)


def answers(of: ServerJudge, count: int = 1) -> list[Answer]:
    """The answers to some questions, each of which is answered once."""
    found = list(of.ask(questions(count)))
    assert sorted(place for place, _ in found) == list(range(count))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def test_a_request_says_what_is_asked_and_the_answer_is_read_where_the_verdict_is() -> None:
    with Stub() as stub:
        [answer] = answers(judge(stub))
    [asked] = stub.requests
    assert asked.body == {
        "model": "gpt",
        "messages": [{"role": "user", "content": "q0"}],
        "temperature": 0.0,
        "max_tokens": 1,
        "seed": 3,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert asked.key == f"Bearer {KEY}"
    assert answer.text == "m"
    assert answer.usage == {"prompt_tokens": 10, "completion_tokens": 1}
    # The stub gives m 0.8 and M 0.1.
    assert read_verdict(ALPACA, answer).share == pytest.approx(0.8 / 0.9, abs=1e-9)


AGAIN = ["408", "409", "429", "500", "503", "reset", "cut", "html", "bad-json", "null", "empty"]


@pytest.mark.parametrize("fault", AGAIN)
def test_a_fault_that_may_pass_is_tried_again(fault: str) -> None:
    with Stub(fault=nth(fault)) as stub:
        [answer] = answers(judge(stub))
    assert answer.failure is None
    assert [asked.fault for asked in stub.requests] == [fault, None]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("429", "refused the question (Error code: 429 - no)"),
        ("503", "refused the question (Error code: 503 - no)"),
        ("reset", "gave no answer in 3 attempts (Connection error.)"),
        ("html", "gave text/html, which is no answer, after 3 attempts"),
        ("bad-json", "gave application/json, which is no answer, after 3 attempts"),
        ("null", "gave an answer without text, after 3 attempts"),
        ("empty", "gave an answer without choices, after 3 attempts"),
    ],
)
def test_a_fault_that_stays_fails_its_question_after_all_attempts(
    fault: str, sentence: str
) -> None:
    with Stub(fault=always(fault)) as stub:
        [answer] = answers(judge(stub, attempts=3))
    assert answer.failure == f"openai:{stub.address}#gpt: {sentence}"
    assert len(stub.requests) == 3
    assert read_verdict(ALPACA, answer).share is None


def test_a_server_that_hangs_is_given_its_time_and_no_more() -> None:
    with Stub(fault=always("hang")) as stub:
        began = time.monotonic()
        [answer] = answers(judge(stub, attempts=2, timeout=0.2))
        seconds = time.monotonic() - began
    assert "gave no answer in 2 attempts (Request timed out.)" in str(answer.failure)
    assert len(stub.requests) == 2
    # Twice 0.2 s and a pause of at most 0.5 s, on however busy a machine; left to itself, the client
    # waits for ten minutes.
    assert 0.4 <= seconds < 60


@pytest.mark.parametrize("fault", ["400", "422"])
def test_a_question_that_is_refused_fails_at_once_and_the_others_go_on(fault: str) -> None:
    def refuse(number: int, body: Mapping[str, Any]) -> str | None:
        return fault if body["messages"][0]["content"] == "q1" else None

    with Stub(fault=refuse, refusal="too long") as stub:
        found = answers(judge(stub), 4)
    assert len(stub.requests) == 4
    assert [answer.failure is None for answer in found] == [True, False, True, True]
    assert f"refused the question (Error code: {fault} - too long)" in str(found[1].failure)


@pytest.mark.parametrize(
    ("fault", "what", "hint"),
    [
        ("401", "the server refuses the key", "set OPENAI_API_KEY"),
        ("403", "the key may not use this model", "check the model"),
        ("404", "the server knows no such model or address", "check openai:http"),
    ],
)
def test_a_wrong_key_model_or_address_stops_the_run_and_the_key_is_not_told(
    fault: str, what: str, hint: str
) -> None:
    with (
        Stub(
            fault=always(fault), refusal=f"Incorrect API key provided: {KEY}.", delay=0.01
        ) as stub,
        pytest.raises(ModelError) as told,
    ):
        answers(judge(stub), 100)
    assert what in told.value.what
    assert hint in told.value.hint
    assert "Incorrect API key provided: ***." in str(told.value)
    # Each of the eight workers may have had one under way, and begun another before it was told.
    assert len(stub.requests) <= 16


def test_the_key_is_in_no_failure_either() -> None:
    with Stub(fault=always("400"), refusal=f"{KEY} is bad") as stub:
        [answer] = answers(judge(stub))
    assert "*** is bad" in str(answer.failure)
    assert KEY not in str(answer) + str(vars(answer))


def test_attempts_at_both_kinds_of_fault_are_counted_together_and_tokens_of_all_are() -> None:
    slept: list[float] = []
    with Stub(fault=nth("500", "null", "503", "html", "429", "empty")) as stub:
        [answer] = answers(judge(stub, slept=slept, attempts=7))
    assert len(stub.requests) == 7
    assert answer.failure is None
    # Without text, without choices, and the answer; a web page has no usage.
    assert answer.usage == {"prompt_tokens": 30, "completion_tokens": 3}
    # 0.5 s, 1 s, 2 s, each less up to a quarter.
    assert len(slept) == 3
    for pause, longest in zip(slept, (0.5, 1.0, 2.0), strict=True):
        assert 0.75 * longest <= pause <= longest
    mixed = ("500", "null", "503", "html", "reset", "429")
    with Stub(fault=lambda number, body: mixed[number % 6]) as stub:
        [answer] = answers(judge(stub, attempts=4))
    assert answer.failure is not None
    assert len(stub.requests) == 4
    with Stub(fault=always("null")) as stub:
        again: list[float] = []
        answers(judge(stub, slept=again, attempts=8))
    assert again[:3] == slept, "the jitter is the seed's and the question's"
    assert max(again) <= 8.0


def test_retry_after_is_obeyed() -> None:
    with Stub(fault=nth("429"), headers={"Retry-After": "0.7"}) as stub:
        [answer] = answers(judge(stub))
    first, second = stub.requests
    assert answer.failure is None
    # The client's own first pause would be 0.375 s to 0.5 s.
    assert 0.7 <= second.at - first.at < 2


def test_a_fifth_of_all_requests_may_fail_and_every_question_has_one_answer() -> None:
    chance = random.Random(5)
    kinds = ["429", "500", "reset", "html", "bad-json", "null", "empty"]
    lock = threading.Lock()

    def fault(number: int, body: Mapping[str, Any]) -> str | None:
        with lock:
            return chance.choice(kinds) if chance.random() < 0.2 else None

    with Stub(fault=fault, delay=0.005) as stub:
        found = answers(judge(stub, workers=8), 300)
    assert [answer.failure for answer in found] == [None] * 300
    good = Counter(asked.text for asked in stub.requests if asked.fault is None)
    assert good == Counter(f"q{number}" for number in range(300)), "none is asked twice"
    faults = sum(asked.fault is not None for asked in stub.requests)
    assert len(stub.requests) == 300 + faults
    assert 40 < faults < 120
    assert 2 <= stub.most_in_flight <= 8


def test_a_server_without_log_probabilities_stops_a_run_that_needs_them() -> None:
    with (
        Stub(fault=always("no-logprobs"), delay=0.01) as stub,
        pytest.raises(ModelError, match="gives no log-probabilities") as told,
    ):
        answers(judge(stub, "logprobs"), 100)
    assert told.value.where == f"openai:{stub.address}#gpt"
    assert told.value.hint == "verdict: text, or a server such as vLLM"
    assert len(stub.requests) <= 16


def test_without_log_probabilities_the_text_is_the_verdict_and_the_reading_says_so() -> None:
    with Stub(fault=always("no-logprobs")) as stub:
        [answer] = answers(judge(stub))
    found = read_verdict(ALPACA, answer)
    assert (found.share, found.verdict) == (1.0, "text")


def test_log_probabilities_that_are_missing_once_are_a_fault_and_not_the_server_s_nature() -> None:
    with Stub(fault=nth(None, "no-logprobs")) as stub:
        found = answers(judge(stub, "logprobs", workers=1), 3)
    assert [answer.failure for answer in found] == [None] * 3
    assert len(stub.requests) == 4


def test_for_text_no_log_probabilities_are_asked_for() -> None:
    with Stub() as stub:
        [answer] = answers(judge(stub, "text"))
    assert not {"logprobs", "top_logprobs"} & set(stub.requests[0].body)
    assert read_verdict(ALPACA, answer, "text").verdict == "text"


def pickiest(most: int) -> Any:
    """Return a `fault` of a server that gives at most so many log-probabilities."""
    return lambda number, body: "400" if body.get("top_logprobs", 0) > most else None


@pytest.mark.parametrize(("most", "asked"), [(5, [20, 5]), (0, [20, 5, None])])
def test_a_server_that_gives_fewer_log_probabilities_is_asked_for_fewer(
    most: int, asked: list[int | None]
) -> None:
    with Stub(fault=pickiest(most), refusal="top_logprobs is too large") as stub:
        found = answers(judge(stub, workers=1), 2)
    assert [each.body.get("top_logprobs") for each in stub.requests] == [*asked, asked[-1]]
    assert all(answer.failure is None for answer in found)
    with (
        Stub(fault=pickiest(0), refusal="logprobs: no") as stub,
        pytest.raises(ModelError, match="gives no log-probabilities"),
    ):
        answers(judge(stub, "logprobs"))


@pytest.mark.parametrize(
    ("refusal", "gone", "there"),
    [
        (
            "Unsupported: 'max_tokens'. Use max_completion_tokens.",
            "max_tokens",
            "max_completion_tokens",
        ),
        ("extra field: seed", "seed", "max_tokens"),
    ],
)
def test_a_parameter_that_a_server_does_not_know_is_given_otherwise(
    refusal: str, gone: str, there: str
) -> None:
    def fault(number: int, body: Mapping[str, Any]) -> str | None:
        return "400" if gone in body else None

    with Stub(fault=fault, refusal=refusal, delay=0.01) as stub:
        found = answers(judge(stub), 20)
    assert all(answer.failure is None for answer in found)
    assert gone not in stub.requests[-1].body
    assert there in stub.requests[-1].body


def test_after_an_answer_a_refusal_changes_nothing_for_the_others() -> None:
    """A question that says "logprobs" and is echoed must not cost the others theirs."""
    with Stub(fault=nth(None, "422"), refusal="the input was: logprobs") as stub:
        found = answers(judge(stub, workers=1), 3)
    assert [answer.failure is None for answer in found] == [True, False, True]
    assert [asked.body.get("top_logprobs") for asked in stub.requests] == [20, 20, 20]


def test_a_server_that_answers_nothing_at_all_is_given_up() -> None:
    with (
        Stub(fault=always("400"), refusal="no such parameter") as stub,
        pytest.raises(
            ModelError, match=f"answers none of the first {UNANSWERED} questions"
        ) as told,
    ):
        answers(judge(stub), 500)
    assert "no such parameter" in told.value.what
    assert len(stub.requests) <= UNANSWERED + 8


def test_leaving_early_makes_no_further_requests() -> None:
    with Stub(delay=0.02) as stub:
        stream: Iterator[tuple[int, Answer]] = judge(stub, workers=4).ask(questions(200))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        made = len(stub.requests)
        time.sleep(0.2)
        assert len(stub.requests) <= made + 4, "those that were under way"


def test_requests_are_spread_over_the_minute_whoever_makes_them() -> None:
    now = 0.0
    waits: list[float] = []
    pace = Pace(120, clock=lambda: now, sleep=waits.append)
    for _ in range(4):
        pace.wait()
    assert waits == [0.5, 1.0, 1.5], "two a second, the first at once"
    now = 100.0
    pace.wait()
    assert len(waits) == 3, "time that passed counts"


def test_attempts_of_the_client_keep_to_the_rate_as_well() -> None:
    slept: list[float] = []
    with Stub(fault=nth("500", "500")) as stub:
        spec = JudgeSpec.model_validate(
            {"server": f"openai:{stub.address}#gpt", "requests_per_minute": 1}
        )
        answers(ServerJudge(spec, ALPACA, sleep=slept.append))
        assert len(stub.requests) == 3
    # Nobody has slept, so the second request is a minute early and the third one two.
    assert slept == pytest.approx([60, 120], abs=30)


@pytest.mark.parametrize(
    ("server", "given", "sentence"),
    [
        ("openai:gpt", None, "openai:gpt: OPENAI_API_KEY is not set → set it, or OPENAI_BASE_URL"),
        ("openai:http://h:x/v1#gpt", "k", 'no address "http://h:x/v1"'),
    ],
)
def test_a_key_or_an_address_that_is_missing_is_said_before_anything_is_asked(
    server: str, given: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if given is not None:
        monkeypatch.setenv("OPENAI_API_KEY", given)
    with pytest.raises(ModelError) as told:
        ServerJudge(JudgeSpec(server=server), ALPACA)
    assert sentence in str(told.value)


def test_a_server_of_one_s_own_needs_no_key_and_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with Stub(fault=nth("400"), refusal="none of it") as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.address)
        first, second = answers(ServerJudge(JudgeSpec(server="openai:gpt", workers=1), ALPACA), 2)
    assert first.failure == "openai:gpt: refused the question (Error code: 400 - none of it)"
    assert second.failure is None


def test_a_password_in_an_address_is_not_told() -> None:
    spec = JudgeSpec(server="openai:http://me:hidden@localhost:1/v1#gpt")
    assert ServerJudge(spec, ALPACA).name == "openai:http://localhost:1/v1#gpt"


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(
        ModelError, match=r"needs? the openai package → pip install 'ivgcli\[serve\]'"
    ):
        ServerJudge(JudgeSpec(server="openai:gpt"), ALPACA)


SERVING = all(importlib.util.find_spec(each) for each in ("fastapi", "uvicorn"))

LETTERS = JudgeTemplate(
    name="letters",
    description="the first letter of whatever is written",
    user="{prompt} {first} {second}",
    labels={"first": tuple("abcdefghijklm"), "second": tuple("nopqrstuvwxyz")},
    pattern="([a-zA-Z])",
    max_tokens=6,
)
"""A template under which what a network with random weights writes is a verdict."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address at which `transformers serve` answers for a tiny chat model."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", folder("llama-chat")]
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            await_health(f"http://127.0.0.1:{port}/health", running, tmp_path / "log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            running.terminate()
            running.wait(20)


def await_health(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as a server answers."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert running.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def asked_of(judging: Any, asked: Sequence[Question]) -> list[tuple[str, float | None]]:
    """The texts of all answers, with what they say."""
    found = dict(judging.ask(asked))
    assert [answer.failure for answer in found.values()] == [None] * len(asked)
    ordered = [found[place] for place in range(len(asked))]
    return [(str(each.text).strip(), read_verdict(LETTERS, each, "text").share) for each in ordered]


@pytest.mark.slow
@pytest.mark.skipif(not SERVING, reason="transformers[serving] is not installed")
def test_a_served_model_gives_the_verdicts_that_it_gives_here(served: str) -> None:
    texts = [text[begin : begin + 30] for text in CORPUS for begin in range(0, 30, 5)]
    asked = [Question(text, ({"role": "user", "content": text},), text) for text in texts]
    here = LocalJudge(ModelSpec(model=folder("llama-chat")), Networks("cpu"), LETTERS, "text")
    spec = JudgeSpec(server=f"openai:{served}#{folder('llama-chat')}", workers=2)
    there = ServerJudge(spec, LETTERS, "text")
    expected = asked_of(here, asked)
    assert asked_of(there, asked) == expected
    assert {share for _, share in expected} == {0.0, 1.0, None}, "all verdicts occur"
    with pytest.raises(ModelError, match="gives no log-probabilities"):
        list(ServerJudge(spec, LETTERS, "logprobs").ask(asked[:1]))
