"""All checks of a recipe, shape first and then meaning, so that everything wrong with a file is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmq_fx.recipe.explain import shape_problems
from dmq_fx.recipe.language import LANGUAGE_VERSION, LANGUAGE_VERSIONS
from dmq_fx.recipe.meaning import file_problems, reference_problems, value_problems
from dmq_fx.recipe.normal import write_out
from dmq_fx.recipe.params import FIXED_KEYS, has_placeholders
from dmq_fx.recipe.problems import Problem, raise_problems
from dmq_fx.recipe.schema import build_schema
from dmq_fx.recipe.tree import Node


class Checker:
    """Checks trees against the language with the passes it was made for."""

    def __init__(self, pass_options: Mapping[str, type]) -> None:
        self.pass_options = dict(pass_options)
        self._schemas: dict[int, dict[str, Any]] = {}

    def check_head(self, tree: Node, file: str) -> None:
        """Check the keys that say what a file is: its parents are read before all of it can be checked."""
        own = {key: node for key, node in tree.items() if key in FIXED_KEYS}
        head = Node(own, tree.where, {key: tree.keys[key] for key in own})
        problems = shape_problems(head, self._schema(head))
        if problems and not has_placeholders(tree):
            self.check_file(tree, file)  # tells the other mistakes, too
        raise_problems(problems, file)

    def check_file(self, tree: Node, file: str, *, partial: bool = False) -> Node:
        """The tree of one file without short forms. What refers to a parent is checked once that is merged in.

        partial: one of several parents, which need not be a whole recipe by itself.
        """
        schema = self._schema(tree)
        if partial:
            schema = {key: value for key, value in schema.items() if key not in ("if", "then", "else")}
        problems = shape_problems(tree, schema)
        dmq = tree.get("dmq")
        if dmq and isinstance(dmq.value, int) and dmq.value not in LANGUAGE_VERSIONS:
            problems = [problem for problem in problems if problem.where == dmq.where]
            raise_problems(problems, file)  # what another version calls a mistake says nothing
        written = write_out(tree, self.pass_options)
        problems += [*value_problems(written), *file_problems(written)]
        if tree.get("extends") is None and not partial:
            problems += reference_problems(written)
        raise_problems(problems, file)
        return written

    def check_whole(self, tree: Node, source: str) -> None:
        """Check a merged or overridden recipe."""
        problems: list[Problem] = shape_problems(tree, self._schema(tree))
        written = write_out(tree, self.pass_options)
        raise_problems([*problems, *value_problems(written), *reference_problems(written)], source)

    def _schema(self, tree: Node) -> dict[str, Any]:
        """The schema of the version that `tree` says, or of the newest."""
        dmq = tree.get("dmq")
        version = dmq.value if dmq and dmq.value in LANGUAGE_VERSIONS else LANGUAGE_VERSION
        version = int(version)
        if version not in self._schemas:
            self._schemas[version] = build_schema(self.pass_options, version)
        return self._schemas[version]
