"""What the parts of `benchmarks.gpu` share: where results go, how long is left, and turns on a clock."""

from __future__ import annotations

import gc
import json
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.contest import Networks, Settings
from benchmarks.limit import Ceilings, describe, measure_ceilings, run_seconds
from benchmarks.turns import COMPILED, SERIAL, Measurement, run_once

WARMUP_TOKENS = 6


class OutOfTime(BaseException):
    """A part has used up its share of the time; libraries that survive any exception let this one through."""


@dataclass
class Run:
    """One call of the script: its device, its clock and its files."""

    folder: Path
    device: torch.device
    dtype: torch.dtype
    tiny: bool
    """Whether every part runs at a size that takes seconds on a CPU."""
    tokenizers: Sequence[Path] = ()
    """Folders of published tokenizers, the base's first."""
    deadline: float = float("inf")
    """When the current part has to be over, on the clock of `time.monotonic`."""
    part: str = ""
    records: list[dict] = field(default_factory=list)
    ceilings_found: Ceilings | None = None

    @property
    def ceilings(self) -> Ceilings:
        """Bandwidth and matrix-product rate, measured when they are first asked for."""
        if self.ceilings_found is None:
            sizes = {"copied": 1 << 24, "side": 256} if self.tiny else {}
            self.ceilings_found = measure_ceilings(self.device, self.dtype, **sizes)
            self.note(name="ceilings", **describe(self.ceilings_found))
        return self.ceilings_found

    def left(self) -> float:
        """Return the seconds that the current part may still take."""
        return self.deadline - time.monotonic()

    def note(self, **fields: object) -> None:
        """Write one result at once."""
        record = {"part": self.part, **fields}
        self.records.append(record)
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as results:
            results.write(json.dumps(record, default=str) + "\n")
        self.log(" ".join(f"{key}={shown(value)}" for key, value in record.items()))

    def log(self, text: str) -> None:
        """Write to the log and to the terminal."""
        print(text, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    @contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """Keep the traceback of whatever fails inside, note that it failed, and go on after it."""
        try:
            yield
        except NotImplementedError as reason:
            self.note(name=name, left_out=str(reason))
        # One peer or part that breaks on a borrowed machine must not cost the results of the others.
        except Exception as problem:
            self.log(traceback.format_exc())
            self.note(name=name, failed=f"{type(problem).__name__}: {problem}"[:300])
        finally:
            free(self.device)


def shown(value: object) -> str:
    """Return a value as the log and the tables show it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "/".join(map(shown, value))
    return str(value)


def free(device: torch.device) -> None:
    """Hand memory that nothing holds back to a GPU."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def compete(
    run: Run,
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    counts: Mapping[str, int],
    *,
    repeat: int = 3,
    **labels: object,
) -> dict[str, Measurement]:
    """Let contestants take turns while there is time, and note each one's median and share of the limit.

    Args:
        run: the call of the script.
        networks: what everyone decodes with.
        prompts: token ids of each prompt.
        mode: one of `MODES`.
        settings: how to decode.
        counts: how many of the prompts each contestant gets, by name.
        repeat: timed repetitions at most.
        labels: what else to note with every result.

    Returns:
        The contestants that were timed at least once.
    """
    found: dict[str, Measurement] = {}
    ceilings = run.ceilings
    short = replace(settings, max_new_tokens=min(WARMUP_TOKENS, settings.max_new_tokens))
    short = replace(short, lengths=None)
    # A collection before every run then looks at what the runs have left, not at the libraries.
    gc.freeze()
    try:
        for name, count in counts.items():
            with run.kept(name):
                # What warms up is code, kernels and packed weights, for which a few prompts will do; what
                # is compiled is compiled for its sizes.
                if name in COMPILED:
                    run_once(name, networks, prompts[:count], mode, settings)
                else:
                    run_once(name, networks, prompts[: min(count, 8)], mode, short)
                found[name] = Measurement(name, mode, count)
                alone = name in SERIAL and mode in ("base", "eft-i")
                asked = replace(settings, samples=1) if alone else settings
                lengths = [len(prompt) for prompt in prompts[:count]]
                found[name].limit = run_seconds(networks, lengths, mode, asked, ceilings)
        for _ in range(1 if run.tiny else repeat):
            for name, measurement in list(found.items()):
                if measurement.seconds and run.left() < 1.2 * measurement.seconds[-1]:
                    continue
                given, broken = prompts[: measurement.prompts], name
                with run.kept(name):
                    run_once(name, networks, given, mode, settings, measurement)
                    broken = None
                if broken:
                    del found[name]
    finally:
        gc.unfreeze()
        found = {name: each for name, each in found.items() if each.seconds}
        for measurement in found.values():
            note_measurement(run, measurement, settings, found.get("ivg"), labels)
    return found


def note_measurement(
    run: Run,
    measurement: Measurement,
    settings: Settings,
    ours: Measurement | None,
    labels: Mapping[str, object],
) -> None:
    """Note one contestant's numbers, and how many times its rate ivg reaches."""
    run.note(
        name=measurement.name,
        mode=measurement.mode,
        **labels,
        prompts=measurement.prompts,
        rows=measurement.prompts * settings.rows_per_prompt(measurement.mode),
        at_once=settings.rows,
        tokens=settings.max_new_tokens,
        seconds=[round(each, 4) for each in measurement.seconds],
        median=statistics.median(measurement.seconds),
        row_rate=measurement.row_rate,
        share_of_limit=measurement.share,
        ivg_times=ours.row_rate / measurement.row_rate if ours else None,
        peak_GB=measurement.peak.total / 1e9 if measurement.peak.total else None,
    )
