"""Recipe files written anew with their comments kept (ruamel.yaml's round trip): `dmq recipe fmt` and `migrate`."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.language import LANGUAGE_VERSION, LANGUAGE_VERSIONS
from dmq_fx.recipe.params import FIXED_KEYS, substitute
from dmq_fx.recipe.source import read_recipe_text
from dmq_fx.recipe.tree import Node

_ROUNDS = 5
_COMMENT = re.compile(r"(?:^|(?<=\s))#[^\r\n]*[^\s]", re.MULTILINE)


def format_text(text: str, file: str) -> str:
    """The text of a recipe with one way of indenting and spacing; formatting it again changes nothing.

    Comments, quotes and the order of keys stay. Raises RecipeError for a file that is not YAML as recipes use it, and
    if what it says could not be kept.
    """
    text = text.replace("\r\n", "\n")
    meaning = read_recipe_text(text, file).plain()
    for _ in range(_ROUNDS):
        written = _tidy(_rewrite(text, file, lambda document: None), meaning, file)
        lost = Counter(_COMMENT.findall(text)) - Counter(_COMMENT.findall(written))
        if lost:
            hint = "move it to a line of its own, outside of braces"
            raise RecipeError(
                f"a comment of this file cannot be kept: {next(iter(lost))[:60]!r}", where=file, hint=hint
            )
        if written == text:
            return written
        text = written
    raise RecipeError("the comments of this file cannot be kept in place", where=file, hint="move them to own lines")


def migrate_text(text: str, file: str) -> tuple[str, int]:
    """The text of a recipe in the newest version of the language, and the version that it was in.

    What it says is the same; it is formatted, and comments stay. A file in the newest version is left as it is.
    """
    tree = read_recipe_text(text, file)
    version = _version(tree, file)
    if tree.get("lock"):
        hint = "remove the `lock:` block to make it a recipe of your own"
        raise RecipeError("a lock stays as it was written: it is read for ever", where=file, hint=hint)
    for step in range(version, LANGUAGE_VERSION):
        text = _rewrite(text, file, _STEPS[step])
    if version == LANGUAGE_VERSION:
        return text, version
    migrated = read_recipe_text(text, file)
    before, after = tree.without("dmq").plain(), substitute(migrated, {}).without("dmq").plain()
    if before != after:
        raise RecipeError("this file cannot be migrated without a change of what it says", where=file)
    return format_text(text, file), version


def _version(tree: Node, file: str) -> int:
    dmq = tree.get("dmq")
    if dmq is None or dmq.value not in LANGUAGE_VERSIONS:
        reads = f"versions {LANGUAGE_VERSIONS[0]} to {LANGUAGE_VERSIONS[-1]}"
        said = "says no version" if dmq is None else f"says version {dmq.value!r}"
        raise RecipeError(f"the file {said} of the recipe language, and this dmq reads {reads}", where=file)
    return int(dmq.value)


def _to_version_2(document: Any) -> None:
    """`${` in a text became a parameter: what was text is escaped."""
    document["dmq"] = "2"
    for key in document:
        if key not in FIXED_KEYS:
            document[key] = _escaped(document[key])


_STEPS: dict[int, Callable[[Any], None]] = {1: _to_version_2}
"""From each version of the language to the next."""


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return type(value)(value.replace("${", "$${")) if "${" in value else value
    if isinstance(value, dict):
        for key in value:
            value[key] = _escaped(value[key])
    elif isinstance(value, list):
        for place, item in enumerate(value):
            value[place] = _escaped(item)
    return value


def _rewrite(text: str, file: str, change: Callable[[Any], None]) -> str:
    """Load, change and dump with comments. Every scalar is text here, so numbers keep how they are written."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.resolver import VersionedResolver

    class AsText(VersionedResolver):
        """Takes plain scalars for strings."""

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            from ruamel.yaml.nodes import ScalarNode
            from ruamel.yaml.tag import Tag

            if kind is ScalarNode:
                return Tag(suffix="tag:yaml.org,2002:str")
            return super().resolve(kind, value, implicit)

    yaml = YAML(typ="rt")
    yaml.Resolver = AsText
    yaml.preserve_quotes = True
    yaml.width = 1_000_000  # lines are not folded
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        document = yaml.load(text)
        change(document)
        written = io.StringIO()
        yaml.dump(document, written)
    except (YAMLError, ValueError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"cannot be written anew: {reason}", where=file) from None
    return written.getvalue()


def _tidy(text: str, meaning: Any, file: str) -> str:
    """`text` without spaces at the ends of lines, if those are no part of a value."""
    stripped = "\n".join(line.rstrip(" \t") for line in text.splitlines()).strip("\n") + "\n"
    for candidate in (stripped, text):
        try:
            if read_recipe_text(candidate, file).plain() == meaning:
                return candidate
        except RecipeError:
            continue
    raise RecipeError("this file cannot be formatted without a change of what it says", where=file)
