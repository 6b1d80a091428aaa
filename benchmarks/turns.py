"""Warm-up, turns and ratios: how contestants are measured beside each other."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from benchmarks.contest import Contestant, Networks, Outcome, Settings
from benchmarks.cost import Peak, Reading, arithmetic, counted, peak_memory
from benchmarks.limit import Ceilings, run_seconds, wait
from benchmarks.ours import IDEAS, run_ivg
from benchmarks.peers.batched_generate import run_batched
from benchmarks.peers.compiled_decode import run_compiled
from benchmarks.peers.continuous_batching import run_continuous
from benchmarks.peers.published_loop import run_published
from benchmarks.peers.static_generate import run_static

CONTESTANTS: dict[str, Contestant] = {
    "ivg": run_ivg,
    "published-loop": run_published,
    "batched-generate": run_batched,
    "static-generate": run_static,
    "continuous-batching": run_continuous,
    "compiled-decode": run_compiled,
} | {f"ivg-without-{idea}": functools.partial(run_ivg, without=frozenset({idea})) for idea in IDEAS}
"""Everyone who can be measured; add a function of the same form to measure another."""

SERIAL = {"published-loop"}
"""Contestants that take one prompt after another: their rate can be measured on fewer prompts."""

COMPILED = {"static-generate"}
"""Contestants that compile for the sizes they are given: their warm-up is a whole run."""


@dataclass
class Measurement:
    """All repetitions of one contestant under one mode."""

    name: str
    mode: str
    prompts: int
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Processor seconds of all threads: on a CPU that others use too, less in doubt than `seconds`."""
    row_tokens: int = 0
    accepted_tokens: int = 0
    limit: float | None = None
    """Seconds of the limit line, where the ceilings are known."""
    peak: Peak = field(default_factory=Peak)
    readings: dict[str, Reading] = field(default_factory=dict)

    @property
    def row_rate(self) -> float:
        """Row-tokens per second at the median time."""
        return self.row_tokens / statistics.median(self.seconds)

    @property
    def accepted_rate(self) -> float:
        """Accepted tokens per second at the median time."""
        return self.accepted_tokens / statistics.median(self.seconds)

    @property
    def share(self) -> float | None:
        """The limit line's time, as a part of the median time."""
        return None if self.limit is None else self.limit / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest repetition, as a part of the median."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


def run_once(
    name: str,
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    into: Measurement | None = None,
) -> None:
    """Run one contestant once and add the result to `into`; with None the run only warms up.

    Raises:
        RuntimeError: a response has another length than the forced one.
    """
    device = networks.base.device
    with counted(networks.named()) as readings, peak_memory(device) as peak:
        start, worked = time.perf_counter(), time.process_time()
        outcome = CONTESTANTS[name](networks, prompts, mode, settings)
        wait(device)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    require_lengths(name, outcome, mode, settings, len(prompts))
    if into is not None:
        into.seconds.append(seconds)
        into.processor.append(worked)
        into.row_tokens, into.accepted_tokens = outcome.row_tokens, outcome.accepted_tokens
        into.peak, into.readings = peak, readings


def require_lengths(
    name: str, outcome: Outcome, mode: str, settings: Settings, prompts: int
) -> None:
    """Refuse a contestant that did less than the others.

    Raises:
        RuntimeError: a response has another length than the forced one.
    """
    found = [len(response) for response in outcome.responses]
    # A contestant with one row per prompt has one response where others have `samples`.
    each = max(1, len(found) // prompts)
    wanted = [settings.length(number) for number in range(prompts) for _ in range(each)]
    if found != wanted:
        raise RuntimeError(
            f"{name}: responses of {sorted(set(found))} tokens "
            f"where {', '.join(map(str, sorted(set(wanted))))} are forced"
        )


def measure(
    names: Sequence[str],
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    *,
    repeat: int,
    warmup_tokens: int,
    serial_prompts: int,
    with_base: bool,
    ceilings: Ceilings | None = None,
    say: Callable[[str], None] = print,
) -> list[Measurement]:
    """Warm everyone up, then let them take turns `repeat` times.

    Args:
        names: contestants, in the order in which they take turns.
        networks: what everyone decodes with.
        prompts: token ids of each prompt.
        mode: one of `MODES`.
        settings: how to decode.
        repeat: timed repetitions, at least 1.
        warmup_tokens: length of the responses of the warm-up, at least 1.
        serial_prompts: how many prompts a serial contestant gets, at least 1.
        with_base: also time plain sampling at the same rows, where a contestant batches rows.
        ceilings: of the device, for the limit line.
        say: called with a sentence for each contestant that is left out.
    """
    rows = settings.rows_per_prompt(mode)
    plain = replace(settings, samples=rows)
    entries: list[tuple[Measurement, Sequence[Sequence[int]], Settings]] = []
    for name in names:
        given = prompts[:serial_prompts] if name in SERIAL else prompts
        entries.append((Measurement(name, mode, len(given)), given, settings))
        if with_base and mode != "base" and name not in SERIAL:
            entries.append((Measurement(name, "base", len(given)), given, plain))
    ready = []
    for entry in entries:
        measurement, given, wanted = entry
        try:
            short = replace(
                wanted,
                max_new_tokens=min(warmup_tokens, wanted.max_new_tokens),
                lengths=None,
            )
            if measurement.name in COMPILED:
                short = wanted
            run_once(measurement.name, networks, given, measurement.mode, short)
            ready.append(entry)
        except NotImplementedError as reason:
            say(f"{measurement.name} {measurement.mode}: left out, {reason}")
            continue
        if ceilings is not None:
            lengths = [len(prompt) for prompt in given]
            alone = measurement.name in SERIAL and measurement.mode in ("base", "eft-i")
            # The published loop has one row per prompt there.
            asked = replace(wanted, samples=1) if alone else wanted
            measurement.limit = run_seconds(networks, lengths, measurement.mode, asked, ceilings)
    for _ in range(repeat):
        for measurement, given, wanted in ready:
            run_once(measurement.name, networks, given, measurement.mode, wanted, measurement)
    return [measurement for measurement, _, _ in ready]


def justified_ratio(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> float:
    """Divide the operations of every network that `mode` uses by those of the base, at the same rows."""
    lengths = [len(prompt) for prompt in prompts]
    used = [networks.base, networks.tuned, networks.reference]
    if mode == "ivg":
        used.append(networks.value)
    rows = settings.rows_per_prompt(mode)
    work = [arithmetic(each).of_run(lengths, rows, settings.max_new_tokens) for each in used]
    return sum(work) / work[0]


def summarise(
    measurements: Sequence[Measurement], mode: str, flops_ratio: float
) -> dict[str, object]:
    """Put rates, ratios between contestants and the cost of guidance into one mapping.

    A contestant's guidance cost is (time guided / time base) / (operations guided / operations
    base): 1 means that guidance takes exactly the time its arithmetic justifies.
    """
    guided = {entry.name: entry for entry in measurements if entry.mode == mode}
    plain = {entry.name: entry for entry in measurements if entry.mode == "base"}
    pairs = [(name, other) for name in guided for other in guided if name != other]
    ratios, work = (
        {f"{name} / {other}": rate(guided[name]) / rate(guided[other]) for name, other in pairs}
        for rate in (
            lambda entry: entry.row_rate,
            lambda entry: entry.row_tokens / statistics.median(entry.processor),
        )
    )
    overhead = {
        name: statistics.median(entry.seconds)
        / statistics.median(plain[name].seconds)
        / flops_ratio
        for name, entry in guided.items()
        if mode != "base" and name in plain
    }
    rows = [
        asdict(entry)
        | {
            "row_tokens_per_second": entry.row_rate,
            "accepted_tokens_per_second": entry.accepted_rate,
            "spread": entry.spread,
            "share_of_limit": entry.share,
        }
        for entry in measurements
    ]
    return {
        "measurements": rows,
        "row_rate_ratios": ratios,
        "processor_rate_ratios": work,
        "justified_flops_ratio": flops_ratio,
        "guidance_cost": overhead,
    }
