"""The flags that commands share, each with its help and its panel."""

from __future__ import annotations

from typing import Annotated

import typer

STREAMS, MODELS, STEERING, DRAWS, ENGINE = (
    "Input and output",
    "Models and guides",
    "Steering",
    "Drawing tokens",
    "Engine",
)

RecipeFile = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="YAML recipe; flags beat what it says.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set any key of the recipe, e.g. token.every=2."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Model to steer: hub id (with @revision), folder, adapter, .gguf, or openai:URL#MODEL.",
        rich_help_panel=MODELS,
    ),
]
Guides = Annotated[
    list[str] | None,
    typer.Option(
        "--guide",
        metavar="NAME|FILE|DIR",
        help="Where values come from; given twice, the later fills in or replaces.",
        rich_help_panel=MODELS,
    ),
]
RewardLabel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Label of a classifier whose log-odds are the reward.",
        rich_help_panel=MODELS,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--in",
        "-i",
        metavar="FILE|-|hf:NAME",
        help="Prompts: JSONL, JSON array, stdin, or a data set hf:NAME:SPLIT; default: -.",
        rich_help_panel=STREAMS,
    ),
]
PromptText = Annotated[
    str | None,
    typer.Option(
        "--prompt", metavar="TEXT", help="One prompt, instead of --in.", rich_help_panel=STREAMS
    ),
]
Out = Annotated[
    str,
    typer.Option("--out", "-o", metavar="FILE|-", help="Responses.", rich_help_panel=STREAMS),
]
OutputFormat = Annotated[
    str,
    typer.Option(metavar="ivg|alpaca-eval", help="Form of the responses.", rich_help_panel=STREAMS),
]
Trace = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Write what was ranked, with its values.", rich_help_panel=STREAMS
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Only the first N prompts.", rich_help_panel=STREAMS),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", metavar="", help="Keep what --out already holds.", rich_help_panel=STREAMS
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", metavar="", help="Only errors and warnings on stderr."),
]
PrintRecipe = Annotated[
    bool,
    typer.Option("--print-recipe", metavar="", help="Print the resolved recipe and exit."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", metavar="", help="Print what it would load and compute, and exit."),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed of all draws.")]
Samples = Annotated[
    int | None, typer.Option(metavar="N", help="Responses per prompt.", rich_help_panel=DRAWS)
]
Temperature = Annotated[
    float | None,
    typer.Option(metavar="T", help="0 takes the most likely token.", rich_help_panel=DRAWS),
]
TopK = Annotated[int | None, typer.Option(metavar="N", help="0 is off.", rich_help_panel=DRAWS)]
TopP = Annotated[float | None, typer.Option(metavar="P", help="1 is off.", rich_help_panel=DRAWS)]
MaxNewTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Longest response.", rich_help_panel=DRAWS)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="Text that ends a response; repeatable.",
        rich_help_panel=DRAWS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, cuda or cuda:N; default: a GPU if there is one.",
        rich_help_panel=ENGINE,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="float32, bfloat16 or float16.", rich_help_panel=ENGINE),
]
Rows = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Sequences that decode at once; default: what memory holds.",
        rich_help_panel=ENGINE,
    ),
]
Speculate = Annotated[
    str | None,
    typer.Option(
        parser=lambda text: int(text) if text.isdecimal() else text,
        metavar="auto|off|N",
        help="Tokens that an implicit guide guesses ahead; the text is the same.",
        rich_help_panel=ENGINE,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        metavar="",
        help="The same bits for any batch, order, resume and number of workers.",
        rich_help_panel=ENGINE,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Start N workers, one a GPU; without GPUs they share the CPU.",
        rich_help_panel=ENGINE,
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="GPUs that hold the base between them; the other networks are whole on each.",
        rich_help_panel=ENGINE,
    ),
]
