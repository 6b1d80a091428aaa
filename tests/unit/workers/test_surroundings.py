"""What torchrun, accelerate and srun say in the environment, and which GPU is whose."""

from __future__ import annotations

from typing import Any

import pytest

from ivgcli.errors import RecipeError
from ivgcli.workers import devices
from ivgcli.workers.devices import own_environment, worker_environments
from ivgcli.workers.surroundings import Surroundings, launched

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-a", "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[003-004]",
}  # fmt: skip


def test_torchrun_keeps_a_store_at_its_port():
    assert launched(TORCHRUN) == Surroundings(5, 8, 1, "node-a", 29400, store_is_there=True)


def test_accelerate_may_name_the_first_machine_without_a_store():
    given = {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert launched(given) == Surroundings(5, 8, 1, "node-a", 29400, store_is_there=False)


def test_srun_names_no_machine_so_the_first_of_the_step_is_it():
    found = launched(SRUN)
    assert found == Surroundings(3, 4, 1, "gpu003", 20_000 + 123402 % 10_000, False)
    assert launched({**SRUN, "SLURM_STEP_ID": "3"}).port != found.port
    named = launched({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7000"})
    assert (named.host, named.port) == ("10.0.0.1", 7000)


@pytest.mark.parametrize(
    ("names", "host"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("n[7,9-12],m1", "n7"),
        ("rack-[01-16]", "rack-01"),
        ("", "localhost"),
    ],
)
def test_the_first_of_a_list_of_nodes(names, host):
    assert launched({**SRUN, "SLURM_STEP_NODELIST": names}).host == host


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "8"},
        {name: text for name, text in SRUN.items() if "STEP" not in name},
    ],
    ids=["nothing", "one process", "no rank", "a batch script"],
)
def test_one_process_is_no_crew(alone):
    assert launched(alone) is None


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that torch sees so many GPUs."""

    def pretend(count: int) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return pretend


def test_each_worker_sees_one_gpu_by_the_name_it_has_here(gpus):
    gpus(3)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in worker_environments(2, None, {})] == ["0", "1"]
    named = {"CUDA_VISIBLE_DEVICES": "4,MIG-7,2"}
    found = worker_environments(3, "cuda", named)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["4", "MIG-7", "2"]


def test_more_gpus_than_there_are_is_refused(gpus):
    gpus(2)
    with pytest.raises(RecipeError) as caught:
        worker_environments(8, None, {})
    told = "--gpus: 8 GPUs are asked for, and only 2 are here → --gpus 2"
    assert str(caught.value) == told
    gpus(0)
    with pytest.raises(RecipeError, match="no GPU is here → --device cpu"):
        worker_environments(2, "cuda", {})
    with pytest.raises(RecipeError, match="each worker has a GPU of its own"):
        worker_environments(2, "cuda:1", {})


def test_without_a_gpu_workers_share_the_cores(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(9)))
    assert worker_environments(2, None, {}) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert worker_environments(2, "cpu", {"OMP_NUM_THREADS": "3"}) == [{"OMP_NUM_THREADS": "3"}] * 2
    assert worker_environments(16, "cpu", {}) == [{"OMP_NUM_THREADS": "1"}] * 16


def test_a_launched_process_takes_the_gpu_of_its_local_number(gpus):
    gpus(4)
    assert own_environment(3, None, {}) == {devices.VISIBLE: "3"}
    assert own_environment(1, "cuda", {devices.VISIBLE: "6,7,8,9"}) == {devices.VISIBLE: "7"}
    assert own_environment(1, "cuda:2", {}) == {}
    with pytest.raises(RecipeError, match="process 4 of this machine has none of its 4 GPUs"):
        own_environment(4, None, {})
    gpus(1)  # srun has shown it its own
    assert own_environment(5, None, {devices.VISIBLE: "0"}) == {devices.VISIBLE: "0"}
    gpus(0)
    assert own_environment(5, None, {}) == {}


def test_a_worker_of_several_shards_sees_as_many_gpus(gpus):
    gpus(8)
    found = worker_environments(2, None, {}, each=4)
    assert [each[devices.VISIBLE] for each in found] == ["0,1,2,3", "4,5,6,7"]
    assert own_environment(1, None, {}, each=4) == {devices.VISIBLE: "4,5,6,7"}
    with pytest.raises(RecipeError, match="process 2 of this machine has no 4 of its 8 GPUs"):
        own_environment(2, None, {}, each=4)
    with pytest.raises(RecipeError, match="12 GPUs are asked for, and only 8 are here → --gpus 8"):
        worker_environments(3, None, {}, each=4)
    gpus(2)  # srun has shown it its own
    assert own_environment(3, None, {devices.VISIBLE: "6,7"}, each=2) == {devices.VISIBLE: "6,7"}
    with pytest.raises(RecipeError, match="4 GPUs are asked for, and only 2 are here → --shards 2"):
        worker_environments(1, None, {}, each=4)
    gpus(0)
    shared = worker_environments(1, None, {"OMP_NUM_THREADS": "1"}, each=2)
    assert shared == [{"OMP_NUM_THREADS": "1", devices.VISIBLE: ""}]


def test_gpus_make_groups_of_as_many_as_hold_a_base():
    assert [devices.groups(*given) for given in ((None, 4), (8, 4), (3, 1), (None, 1))] == [
        1, 2, 3, 1,
    ]  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        devices.groups(6, 4)
    told = "--gpus: 6 GPUs make no groups of 4, one for each copy of the base → --gpus 8"
    assert str(caught.value) == told
