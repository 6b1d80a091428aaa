"""How many rows decode at once: what memory holds, up to where more rows gain nothing."""

from __future__ import annotations

from collections.abc import Sequence

from ivgcli.models.memory import free_memory
from ivgcli.models.streams import Stream

SHARE = 0.6
"""Share of the free memory that rows may take; the rest is for activations and for others."""

MOST = {"cpu": 128, "cuda": 256}
"""More rows than this only lengthen the wait for the first response."""


def affordable_rows(streams: Sequence[Stream], length: int, need: int) -> int:
    """Return how many rows of `length` tokens fit, a multiple of `need` and at least that.

    Args:
        streams: all streams of the run; each keeps keys and values of every row.
        length: longest sequence of a row, in tokens.
        need: rows of one search.
    """
    base = streams[0].network
    device = base.device
    bytes_per_row = sum(
        row_bytes(_bytes_per_token(stream), stream.network.width, length) + stream.bytes_per_row
        for stream in streams
    )
    free = free_memory(device)
    if base.shards is not None:
        free = base.shards.least(free, device)
    return fitting_rows(free, bytes_per_row, device.type, need)


def row_bytes(bytes_per_token: int, width: int, length: int) -> int:
    """Return the bytes that a row of one stream takes: keys and values, and a few vectors of outputs.

    Args:
        bytes_per_token: of keys and values.
        width: D, the network's outputs per position.
        length: of the sequence, in tokens.
    """
    return bytes_per_token * length + 24 * width


def fitting_rows(free: int, bytes_per_row: int, device: str, need: int) -> int:
    """Return how many rows fit, a multiple of `need` and at least that.

    Args:
        free: bytes that are free beside the weights.
        bytes_per_row: of all streams together.
        device: type of the device, cpu or cuda.
        need: rows of one search.
    """
    fitting = int(SHARE * free // max(bytes_per_row, 1))
    most = MOST.get(device, MOST["cpu"])
    return max(need, min(fitting, max(most, need)) // need * need)


def _bytes_per_token(stream: Stream) -> int:
    config = stream.network.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if stream.network.shards is not None:
        heads //= stream.network.shards.count
    weight = stream.network.model.get_input_embeddings().weight
    return 2 * stream.network.layers * heads * width * weight.element_size()
