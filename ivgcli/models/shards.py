"""A base divided among several GPUs: its weights by tensor parallelism, one process a GPU, all in step.

Every matrix is cut by rows or columns and every GPU computes its own attention heads (transformers has the plan for
each family); two sums over all GPUs in each layer make hidden states whole again. Whatever follows from them is worked
out by every process alike, and the first one's word counts where they could differ.

Reference:
    Shoeybi et al. (2019), Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers.distributed import DistributedConfig

from ivgcli.errors import ModelError

WHERE = "base.shards"


class Shards:
    """What the processes that hold one base between them have to agree on.

    Args:
        count: of these processes, all of this process's group.

    Raises:
        ModelError: this process is in no such group.
    """

    def __init__(self, count: int) -> None:
        found = dist.get_world_size() if dist.is_initialized() else 1
        if found != count:
            what = f"{count} processes are to hold the base between them, and {found} are there"
            raise ModelError(WHERE, what, "run the ivg command, which starts them")
        self.count = count

    @property
    def plan(self) -> DistributedConfig:
        """How transformers is to divide a model: by the plan of its family."""
        return DistributedConfig(tp_size=self.count)

    def agreed(self, numbers: Tensor) -> Tensor:
        """Return the first process's numbers.

        What follows from the base's hidden states is the same everywhere, since every process gets the same sums.
        Guides are computed by each process on its own, and a kernel that a library chose by a measurement on one GPU
        could move a last digit there. A draw that falls to the other side of it would part the processes for good.
        """
        shared = numbers.contiguous()
        dist.broadcast(shared, src=0)
        return shared

    def least(self, number: int, device: torch.device) -> int:
        """Return the smallest of all processes' numbers."""
        found = torch.tensor(number, device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found)


def require_shardable(name: str, config: Any, count: int) -> None:
    """Check before any weights are loaded that a model can be divided.

    Args:
        name: of the model.
        config: of transformers.
        count: of the processes to divide it among.

    Raises:
        ModelError: its family has no plan, or its heads cannot be dealt out evenly.
    """
    text = config.get_text_config()
    if not getattr(text, "base_model_tp_plan", None):
        what = f"transformers has no plan by which a {config.model_type} could be divided"
        raise ModelError(name, what, "leave --shards out, or use base.quantization: 4bit")
    heads = int(text.num_attention_heads)
    require_heads(name, int(getattr(text, "num_key_value_heads", None) or heads), count)


def require_heads(name: str, heads: int, count: int) -> None:
    """Check that every process gets as many key/value heads as the others, at least one.

    Raises:
        ModelError: it does not.
    """
    if heads % count:
        fitting = max(each for each in range(1, min(heads, count) + 1) if heads % each == 0)
        what = f"its {heads} key/value heads cannot be dealt out evenly to {count} GPUs"
        raise ModelError(name, what, f"--shards {fitting}")


def whole_outputs(head: nn.Module, hidden: Tensor, widen: bool) -> Tensor:
    """Return the outputs (N, D) of a divided head for hidden states (N, H), those of all processes side by side.

    Args:
        head: without a bias; each process has some of its rows.
        hidden: (N, H), the same everywhere.
        widen: whether to sum and return half-precision products in float32.
    """
    weight: Any = head.weight
    part = weight.to_local().t()
    if widen:
        local = torch.mm(hidden, part, out_dtype=torch.float32)
    else:
        local = torch.mm(hidden, part)
    shape = torch.Size((hidden.shape[0], weight.shape[0]))
    whole = DTensor.from_local(
        local, weight.device_mesh, [Shard(1)], run_check=False, shape=shape, stride=(shape[1], 1)
    )
    return whole.full_tensor()


def divided(head: nn.Module) -> bool:
    """Return whether each process has but some rows of a head, and nothing is added to its outputs."""
    weight = getattr(head, "weight", None)
    rows = isinstance(weight, DTensor) and weight.placements == (Shard(0),)
    return rows and getattr(head, "bias", None) is None
