"""Errors that the person at the keyboard can mend: a place, a fact and a next step.

Library code raises them, `console.guard` prints them, and nobody else exits. Anything that is not
an `IvgError` is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class IvgError(Exception):
    """Something the person at the keyboard can fix.

    Args:
        where: the place: a file with its line, a flag, a model, a record's id. Empty where `what`
            says it all.
        what: the fact, in lower case, with the offending value quoted.
        hint: what to do next. Empty where the fact already says it.
        details: further lines, one for each of several problems.
    """

    exit_code = 2

    def __init__(self, where: str, what: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(where, what, hint, details)
        self.where = where
        self.what = what
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        """Return `where: what → hint`, leaving out what is empty, and the details below it."""
        sentence = f"{self.where}: {self.what}" if self.where else self.what
        sentence = f"{sentence} → {self.hint}" if self.hint else sentence
        return "\n  ".join([sentence, *self.details])


class RecipeError(IvgError):
    """A recipe file, a guide, a flag or a `--set` that does not say what it should."""

    @classmethod
    def gather(cls, where: str, problems: Sequence[RecipeError]) -> RecipeError:
        """Return one error that tells all `problems` (at least one); a single one is enough."""
        if len(problems) == 1:
            return problems[0]
        return cls(where, f"{len(problems)} problems", details=[str(each) for each in problems])


class RecordError(IvgError):
    """An input line that cannot be read, or an output that must not be touched."""


class ModelError(IvgError):
    """A model that is absent, does not fit the others, or answers with what is not finite."""
