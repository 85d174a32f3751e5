"""All checks of a recipe, shape first and then meaning, so that everything wrong with a file is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmq_fx.recipe.explain import shape_problems
from dmq_fx.recipe.language import LANGUAGE_VERSION
from dmq_fx.recipe.meaning import reference_problems, value_problems
from dmq_fx.recipe.normal import write_out
from dmq_fx.recipe.problems import Problem, raise_problems
from dmq_fx.recipe.schema import build_schema
from dmq_fx.recipe.tree import Node


class Checker:
    """Checks trees against the language with the passes it was made for."""

    def __init__(self, pass_options: Mapping[str, type]) -> None:
        self.pass_options = dict(pass_options)
        self._schema: dict[str, Any] = build_schema(pass_options)

    def check_file(self, tree: Node, file: str) -> Node:
        """The tree of one file without short forms. What refers to a parent is checked once that is merged in."""
        problems = shape_problems(tree, self._schema)
        dmq = tree.get("dmq")
        if dmq and isinstance(dmq.value, int) and dmq.value != LANGUAGE_VERSION:
            problems = [problem for problem in problems if problem.where == dmq.where]
            raise_problems(problems, file)  # what another version calls a mistake says nothing
        written = write_out(tree, self.pass_options)
        problems += value_problems(written)
        if tree.get("extends") is None:
            problems += reference_problems(written)
        raise_problems(problems, file)
        return written

    def check_whole(self, tree: Node, source: str) -> None:
        """Check a merged or overridden recipe."""
        problems: list[Problem] = shape_problems(tree, self._schema)
        written = write_out(tree, self.pass_options)
        raise_problems([*problems, *value_problems(written), *reference_problems(written)], source)
