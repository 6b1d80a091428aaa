"""A Python function as a reward: `module:function`, called with lists of prompts and responses."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ivgcli.errors import ModelError


class CallableScorer:
    """Rewards from `function(prompts, responses) -> list of numbers`.

    The module is looked up as Python does, and in the working directory.

    Raises:
        ModelError: no such module or function.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = _find(name)

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """Return one finite number per response.

        Raises:
            ModelError: the function returned another number of values, or something that is no number.
        """
        values = self.function(list(prompts), list(responses))
        try:
            values = [float(value) for value in values]
        except (TypeError, ValueError) as problem:
            raise ModelError(
                self.name, f"returned something that is no list of numbers ({problem})"
            ) from problem
        if len(values) != len(responses):
            raise ModelError(
                self.name,
                f"returned {len(values)} values for {len(responses)} responses",
                "return one for each",
            )
        return [value if math.isfinite(value) else math.nan for value in values]


def _find(name: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    module_name, _, function_name = name.partition(":")
    if not function_name:
        raise ModelError(name, "names no function", "write module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name and module_name.split(".")[0] != problem.name.split(".")[0]:
            raise ModelError(
                name, f"needs the package {problem.name}", f"pip install {problem.name}"
            ) from problem
        raise ModelError(
            name, f"no module {module_name}", "check the name; the working directory is searched"
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(name, f"the module has no function {function_name}", "check the name")
    return function
