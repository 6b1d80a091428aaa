"""`--gpus`, `--shards`, torchrun, accelerate and srun: whether this process is alone, leads or works for a leader."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivgcli.errors import RecordError
from ivgcli.workers.surroundings import ADDRESS, NUMBER, TOKEN, launched

if TYPE_CHECKING:
    from ivgcli.console import Progress
    from ivgcli.records import PairWriter, ResponseWriter, TraceWriter
    from ivgcli.workers.crew import Crew
    from ivgcli.workers.link import Link
    from ivgcli.workers.mates import Mate
    from ivgcli.workers.team import Team
    from ivgcli.workflows.summary import Summary

LOOPBACK = "127.0.0.1"


def crewed(gpus: int | None, shards: int = 1) -> bool:
    """Return whether this process is one of several."""
    return ADDRESS in os.environ or launched(os.environ) is not None or max(gpus or 1, shards) > 1


def require_file(source: str | None) -> None:
    """Check that several processes can read an input.

    Raises:
        RecordError: it is a pipe.
    """
    piped = source in (None, "-")
    if not piped and not str(source).startswith("hf:"):
        path = Path(str(source))
        piped = path.exists() and not path.is_file() and not path.is_dir()
    if piped:
        what = "several processes cannot read one pipe"
        raise RecordError("--in", what, "name a file with --in")


def _named(command: str, run: str, given: Sequence[Any]) -> str:
    """Return what all processes of a run have in common, and those of another have not."""
    digest = hashlib.sha256(f"{command} {run}".encode())
    for each in given:
        digest.update(repr(each).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Role:
    """What this process is; it is alone, if neither is there."""

    link: Link | Mate | None = None
    """To its leader, if it is a worker, or the mate of one."""
    team: Team | None = None
    """Whom it leads."""


def join(
    command: str,
    run: str,
    given: Sequence[Any],
    gpus: int | None,
    device: str | None,
    shards: int = 1,
) -> Role:
    """Return the role of this process in a run, connected to its leader if it has one.

    Args:
        command: what is run.
        run: id of its recipe.
        given: its input.
        gpus: GPUs that are asked for.
        device: as the recipe says.
        shards: GPUs of each worker, which hold the base between them.

    Raises:
        RecipeError: there are fewer GPUs.
        RecordError: there is no leader.
    """
    if not crewed(gpus, shards):
        return Role()
    from ivgcli.workers.mates import SHARD, Mate

    if SHARD in os.environ:
        return Role(Mate(shards))
    name = _named(command, run, given)
    link = _find_leader(name, device, shards)
    return Role(link, _gather(name, gpus, device, shards) if link is None else None)


def _find_leader(run: str, device: str | None, shards: int) -> Link | None:
    """Return the connection to the leader of a run; None if this process leads it.

    A process that a launcher has started is shown its own GPU here, before CUDA is.
    """
    from ivgcli.workers.link import Link

    if ADDRESS in os.environ:
        host, _, port = os.environ[ADDRESS].rpartition(":")
        return Link(host, int(port), os.environ[TOKEN], run, int(os.environ[NUMBER]))
    around = launched(os.environ)
    if around is None or around.rank == 0:
        return None
    from ivgcli.workers.devices import own_environment
    from ivgcli.workers.rendezvous import look_up

    os.environ.update(own_environment(around.local_rank, device, os.environ, shards))
    port_there, token = look_up(around, run)
    return Link(around.host, port_there, token, run, around.rank)


def work(link: Link | Mate, workflow: Callable[..., Any], shards: int = 1) -> None:
    """Do a worker's share by a workflow, which takes a writer, a narrator and a share, and tell what it came to.

    Args:
        link: to the leader; a mate's goes to the first process of those that hold the base.
        workflow: what to do.
        shards: how many hold it.
    """
    from ivgcli.workers.link import Link
    from ivgcli.workers.mates import Mates

    with ExitStack() as stack:
        stack.enter_context(link)
        if shards > 1 and isinstance(link, Link):
            stack.enter_context(Mates(link, _again(), shards))
        summary = workflow(writer=link, progress=link, share=link)
        link.end(asdict(summary))


def _again() -> Sequence[str]:
    """Return the command that runs in this process."""
    return (sys.executable, "-m", "ivgcli", *sys.argv[1:])


def _gather(run: str, gpus: int | None, device: str | None, shards: int) -> Team:
    """Return the team that this process leads.

    Under a launcher that is the first process: it starts one worker, on its own GPU.

    Raises:
        RecipeError: there are fewer GPUs.
    """
    from ivgcli.workers.devices import groups, own_environment, worker_environments
    from ivgcli.workers.team import Team

    command = _again()
    around = launched(os.environ)
    if around is None:
        found = worker_environments(groups(gpus, shards), device, os.environ, shards)
        return Team(run, _numbered(found), command, opened=_here)
    from ivgcli.workers.rendezvous import announce

    stores = []

    def opened(port: int, token: str) -> Mapping[str, str]:
        stores.append(announce(around, run, port, token))
        return _here(port, token)

    local = around.host in ("localhost", LOOPBACK)
    own = _numbered([own_environment(around.local_rank, device, os.environ, shards)])
    listening = LOOPBACK if local else "0.0.0.0"
    return Team(run, own, command, around.world - 1, listening, opened)


def decode(
    team: Team,
    keys: Sequence[Hashable],
    key_of: Callable[[Any], Hashable],
    writer: ResponseWriter | PairWriter,
    progress: Progress,
    trace: TraceWriter | None = None,
) -> Summary:
    """Have everything decoded that a writer lacks, and return what it came to; arguments as for `lead`."""
    from ivgcli.workflows.summary import Written, merged

    written = []

    def keep(worker: int, given: Any) -> None:
        written.append(Written.of(worker, given if isinstance(given, list) else [given]))

    crew = lead(team, keys, key_of, writer, progress, keep, trace)
    return merged(crew.accounts, written, crew.seconds, crew.lost)


def lead(
    team: Team,
    keys: Sequence[Hashable],
    key_of: Callable[[Any], Hashable],
    writer: ResponseWriter | PairWriter,
    progress: Progress,
    keep: Callable[[int, Any], None],
    trace: TraceWriter | None = None,
    portions: int = 1,
) -> Crew:
    """Have a team do everything that a writer lacks.

    Args:
        team: who works.
        keys: of all units, in their order.
        key_of: returns the key of what finishes a unit.
        writer: takes what finishes a unit.
        progress: shows how far the run is.
        keep: given a worker's number and what it has finished, once that is written.
        trace: takes lines of the trace.
        portions: as the dispenser takes it.

    Raises:
        IvgError: what a worker raised, or all have died.
        SystemExit: a worker had a bug; its traceback is printed.
    """
    from ivgcli.workers.crew import Crashed, Crew
    from ivgcli.workers.team import Job

    places = {key: place for place, key in enumerate(keys)}

    def accept(worker: int, given: Any) -> None:
        writer.write(given)
        keep(worker, given)

    job = Job(
        [place for key, place in places.items() if key not in writer.done],
        lambda given: places[key_of(given)],
        accept,
        progress,
        (lambda line: None) if trace is None else trace.write,
        portions,
    )
    if not team.others:
        team = replace(team, environments=team.environments[: len(job.units)])
    crew = Crew(team, job)
    try:
        if job.units or team.others:
            crew.run()
    except Crashed as crash:
        print(crash, end="", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    return crew


def _numbered(environments: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the environments of workers, each with its number."""
    return [{**each, NUMBER: str(number)} for number, each in enumerate(environments)]


def _here(port: int, token: str) -> Mapping[str, str]:
    """Return what tells a worker of this machine where its leader is."""
    return {ADDRESS: f"{LOOPBACK}:{port}", TOKEN: token}
