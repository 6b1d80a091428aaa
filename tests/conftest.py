"""What holds for every test: no network, no terminal's width, no user's settings."""

from __future__ import annotations

import os

# Set before any library reads it: a test that needs the network is a wrong test.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "80"
os.environ["NO_COLOR"] = "1"
