"""A run without a model, to be killed: writes one response for each key, in a shuffled order.

Usage: killable.py OUT COUNT SHUFFLE. A response depends on its key alone, as a real one does.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time

from ivgcli.records import open_responses
from ivgcli.records.journal import Key


def wanted(count: int) -> list[Key]:
    """Return the keys of a run with two samples of each prompt."""
    return [(f"movie-{index:04d}", sample) for index in range(count // 2) for sample in (0, 1)]


def response(key: Key) -> dict[str, object]:
    """Return the record that a key always has: of uneven length, not all ASCII."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    text = "«" + digest * (1 + int(digest[:2], 16) % 24) + "»\n"
    return {"id": key[0], "response": text, "sample": key[1], "run": "7c1e0b92", "error": None}


def main() -> None:
    """Write what is left to do."""
    out, count, shuffle = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    keys = wanted(count)
    order = random.Random(shuffle).sample(keys, len(keys))
    with open_responses(out, keys=keys, run="7c1e0b92", recipe_yaml="", resume=True) as writer:
        print("open", flush=True)
        for key in order:
            if key not in writer.done:
                writer.write(response(key))
                time.sleep(0.001)


if __name__ == "__main__":
    main()
