"""The command line: parse, open streams, call a workflow, exit. No arithmetic, no torch.

Anything heavy is imported where it is needed, so that `ivg --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ivgcli import __version__, console
from ivgcli.cli import decoding, guiding, judging, reporting, synthesis, training

app = typer.Typer(
    name="ivg",
    help="Steer a large frozen language model at decoding time with the values of small ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        print(f"ivg {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_show_version,
            is_eager=True,
            help="Print the version.",
        ),
    ] = False,
) -> None:
    """Steer a large frozen language model at decoding time with the values of small ones."""


app.command(
    epilog="Example: ivg generate --base mistralai/Mistral-7B-Instruct-v0.2 --guide tulu --mode ivg"
    " --prompt 'Why is the sky blue?'"
)(decoding.generate)
app.command(
    epilog="Example: ivg bon --base gpt2 --reward mypackage.rewards:politeness -n 16"
    " --in prompts.jsonl"
)(decoding.bon)
app.command(epilog="Example: ivg guide tulu --base mistralai/Mistral-7B-Instruct-v0.2")(
    guiding.guide
)
app.command(
    epilog="Example: ivg synthesize --base gpt2 --reward mypackage.rewards:politeness -n 4"
    " --in prompts.jsonl --out pairs.jsonl"
)(synthesis.synthesize)

app.command(epilog="Example: ivg train-implicit --init gpt2 --in pairs.jsonl --out runs/implicit")(
    training.train_implicit
)

app.command(
    epilog="Example: ivg train-explicit --init gpt2 --target fudge --in pairs.jsonl"
    " --out runs/explicit"
)(training.train_explicit)

app.command(
    epilog="Example: ivg judge --in ivg.jsonl --reward mypackage.rewards:politeness"
    " --out ivg.judged.jsonl"
)(judging.judge)
app.command(
    epilog="Example: ivg report base.judged.jsonl ivg.judged.jsonl --baseline base --out report"
)(reporting.report)


def main() -> None:
    """Run the command line; the entry point `ivg`."""
    with console.guard():
        app()
