"""Which checkpoint to go on from. What resuming makes of torn ones is tested with the command."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ivgcli.training.checkpoints import newest_whole, whole


def checkpoint(place: Path, *, sharded: bool = False) -> Path:
    """Write what a trainer writes."""
    place.mkdir(parents=True)
    if sharded:
        (place / "pytorch_model_fsdp_0").mkdir()
        (place / "pytorch_model_fsdp_0" / "__0_0.distcp").write_text("weights")
    else:
        save_file({"w": torch.zeros(2)}, place / "model.safetensors")
        torch.save({}, place / "optimizer.pt")
    torch.save({}, place / "scheduler.pt")
    torch.save({}, place / ("rng_state_0.pth" if sharded else "rng_state.pth"))
    (place / "trainer_state.json").write_text(json.dumps({"global_step": 1}) + "\n")
    return place


def test_the_newest_goes_by_its_number(tmp_path: Path) -> None:
    made = [checkpoint(tmp_path / f"checkpoint-{step}") for step in (100, 20, 3)]
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_whole(tmp_path) == (made[0], [])


def test_torn_ones_are_named_the_newest_first(tmp_path: Path) -> None:
    made = [checkpoint(tmp_path / f"checkpoint-{step}") for step in (4, 3, 2, 1)]
    for each in (*made[:2], made[3]):
        (each / "optimizer.pt").write_bytes(b"PK\x03\x04 and no more")
    assert newest_whole(tmp_path) == (made[2], made[:2])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "absent") == (None, [])


def test_shards_take_the_place_of_weights_and_optimiser(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "checkpoint-1", sharded=True)
    assert whole(made)
    (made / "scheduler.pt").write_bytes(b"")
    assert not whole(made)


def test_one_torn_file_among_several_is_enough(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "checkpoint-1")
    shard = made / "model-00002-of-00002.safetensors"
    shard.write_bytes((made / "model.safetensors").read_bytes()[:-1])
    assert not whole(made)
    shard.unlink()
    (made / "rng_state_1.pth").write_bytes(b"")
    assert not whole(made)
