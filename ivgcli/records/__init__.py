"""Records: prompts in, responses out, one JSON line each; resuming after any kind of stop.

JSON is read and written here and nowhere else.
"""

from ivgcli.records.prompts import Prompt, read_prompts
from ivgcli.records.writers import (
    Format,
    ResponseWriter,
    TraceWriter,
    open_responses,
    write_account,
)

__all__ = ["Format", "Prompt", "ResponseWriter", "TraceWriter", "open_responses", "read_prompts", "write_account"]
