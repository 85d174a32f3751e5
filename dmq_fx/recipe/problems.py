"""Several errors of one file, reported together in the order they stand in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.tree import Position

SHOWN = 50
"""Errors that a message lists."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe, and where."""

    where: Position
    message: str
    hint: str | None = None

    def error(self) -> RecipeError:
        return RecipeError(self.message, where=str(self.where), hint=self.hint)


class RecipeErrors(RecipeError):
    """More than one error; `problems` holds them one by one, and the message shows the first `SHOWN`."""

    def __init__(self, problems: tuple[RecipeError, ...], *, source: str) -> None:
        lines = [f"{len(problems)} errors"]
        for problem in problems[:SHOWN]:
            lines += ["  " + line for line in str(problem).splitlines()]
        if len(problems) > SHOWN:
            lines.append(f"  and {len(problems) - SHOWN} more")
        super().__init__("\n".join(lines), where=source)
        self.problems = problems


def problems_of(error: RecipeError) -> tuple[RecipeError, ...]:
    """The single errors that `error` stands for."""
    return error.problems if isinstance(error, RecipeErrors) else (error,)


def raise_problems(problems: Iterable[Problem], source: str) -> None:
    """Raise the problems found in `source`, sorted by position; do nothing if there are none."""
    found = sorted(set(problems), key=lambda problem: (problem.where, problem.message))
    if len(found) == 1:
        raise found[0].error()
    if found:
        raise RecipeErrors(tuple(problem.error() for problem in found), source=source)
