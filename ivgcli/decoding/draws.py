"""Random numbers that belong to a record, not to a batch.

The token drawn at a place is argmax_v p_v / E_v with exponential noise E_v, a form of Gumbel-max. E_v is a pure
function of (seed, record id, sample, candidate, step, token id), computed with 32-bit integer arithmetic that
is the same on every device, so a response depends on nothing else: not on its neighbours, the order of the
input, a resume or the number of workers. Two models that share the noise also agree wherever their
distributions nearly do.

Reference: Maddison, Tarlow and Minka (2014), A* sampling, for Gumbel-max; Daliri, Musco and Suresh (2024) for
models that share their noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def stream_key(seed: int, record: str, sample: int, candidate: int) -> int:
    """Return the 64-bit key of one candidate of one sample of one record.

    Args:
        seed: the run's seed.
        record: the record's id.
        sample: which sample of the record.
        candidate: canonical number among the candidates of one ranking: rank·K + k in a beam search, the
            sample's number in best-of-N, 0 otherwise.
    """
    # The id's length goes in too, so that no id can be written to look like other fields.
    text = f"{seed}\x1f{len(record)}\x1f{record}\x1f{sample}\x1f{candidate}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def step_keys(keys: Sequence[int], steps: Sequence[int], device: torch.device) -> Tensor:
    """Return two 32-bit words (B, 2) int32 for each row's key at its step (splitmix64)."""
    words = torch.tensor([signed(key) for key in keys], dtype=torch.int64, device=device)
    return mixed_keys(words, torch.tensor(list(steps), dtype=torch.int64, device=device))


def mixed_keys(keys: Tensor, steps: Tensor) -> Tensor:
    """Return the words (B, 2) int32 of keys (B,) int64, as `signed` gives them, at steps (B,) int64.

    Integers wrap around in 64 bits, as splitmix64 wants them to.
    """
    x = keys + (steps + 1) * signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return torch.stack([(x << 32) >> 32, x >> 32], dim=-1).to(torch.int32)


def signed(word: int) -> int:
    """Return the signed 64-bit integer with the bits of an unsigned one."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _shifted(x: Tensor, by: int) -> Tensor:
    """Return x ≫ by, shifting zeros in."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def exponential_noise(keys: Tensor, tokens: Tensor) -> Tensor:
    """Return independent Exp(1) numbers for (row, token) pairs.

    Args:
        keys: (B, 2) int32 from `step_keys`.
        tokens: (V,) or (B, C) int32 token ids.

    Returns:
        (B, V) or (B, C) float32, each at least 2⁻³². Small numbers, which decide the race, keep full relative
        precision.
    """
    tokens = tokens if tokens.dim() == 2 else tokens[None]
    x = tokens ^ keys[:, :1]
    scratch = torch.empty_like(x)
    _mix(x, scratch, 16, -2048144789)  # 0x85ebca6b
    x += keys[:, 1:]
    _mix(x, scratch, 15, -1028477387)  # 0xc2b2ae35
    _mix(x, scratch, 13, 668265263)  # 0x27d4eb2f
    torch.bitwise_right_shift(x, 16, out=scratch).bitwise_and_(0xFFFF)
    x ^= scratch
    x &= 0x7FFFFFFF
    uniform = x.to(torch.float32).add_(0.5).mul_(-(2.0**-31))
    return uniform.log1p_().neg_()


def _mix(x: Tensor, scratch: Tensor, shift: int, factor: int) -> None:
    """X ← (x ⊕ x ≫ shift)·factor, with a logical shift, in place."""
    torch.bitwise_right_shift(x, shift, out=scratch).bitwise_and_((1 << (32 - shift)) - 1)
    x ^= scratch
    x *= factor
