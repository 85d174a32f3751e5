"""YAML text to a tree with positions, refusing what a recipe has no use for.

A recipe is data that a person reads from top to bottom: tags, anchors, aliases, merge keys, several documents in
a file and keys that are not strings are errors, and so are depth and size that no recipe needs. PyYAML scans and
parses; what its events mean is decided here, so nothing of PyYAML's constructors ever runs.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml import events as ev

from dmq_fx.recipe.problems import Problem, raise_problems
from dmq_fx.recipe.scalars import resolve_scalar
from dmq_fx.recipe.tree import Node, Position

DEPTH_LIMIT = 32
NODE_LIMIT = 20_000

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MERGE_HINT = "schemes and passes are shared with `extends`"
_ALIAS_HINT = "write the value out; text that begins with * or & needs quotes"


def read_yaml(text: str, file: str) -> Node | None:
    """The tree of `text`, or None if it holds no value. Raises RecipeError with every problem that was found."""
    return _read(text, file, fixed=None)


def read_value(text: str, name: str) -> Node | None:
    """The tree of a short text such as the value of a command-line option; all of it is placed at `name`."""
    return _read(text, name, fixed=Position(name))


def _read(text: str, file: str, fixed: Position | None) -> Node | None:
    bad = _UNPRINTABLE.search(text)
    if bad:
        before = text[: bad.start()]
        where = fixed or Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise Problem(where, f"the character U+{ord(bad[0]):04X} is not allowed in a recipe").error()
    reader = _Reader(text, file, fixed)
    try:
        tree = reader.document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, reader).error() from None
    except (ValueError, OverflowError):  # PyYAML lets them through, for "\U99999999" and %YAML 999...
        message = "not valid YAML: the number of an escape or a directive is out of range"
        raise Problem(reader.reached(), message).error() from None
    except yaml.YAMLError as error:
        raise Problem(reader.reached(), f"not valid YAML: {error}").error() from None
    raise_problems(reader.problems, file)
    return tree


def _syntax_error(error: yaml.MarkedYAMLError, reader: _Reader) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = reader.position(mark) if mark else reader.last
    problem = error.problem or str(error)
    hint = None
    if "\\t" in problem:
        hint = "indent with spaces, not with tabs"
    elif error.context and ("alias" in error.context or "anchor" in error.context):
        hint = _ALIAS_HINT
    context = f"{error.context}: " if error.context else ""
    return Problem(where, f"not valid YAML: {context}{problem}", hint)


class _Reader:
    """Turns PyYAML's events into nodes and collects what is not allowed."""

    def __init__(self, text: str, file: str, fixed: Position | None) -> None:
        self.problems: list[Problem] = []
        self.last = fixed or Position(file, 1, 1)
        self._file = file
        self._fixed = fixed
        self._loader = yaml.SafeLoader(text)  # scans and parses; its constructors are not used
        self._nodes = 0

    def position(self, mark: yaml.Mark) -> Position:
        return self._fixed or Position(self._file, mark.line + 1, mark.column + 1)

    def reached(self) -> Position:
        """Where reading stands."""
        return self.position(self._loader.get_mark())

    def document(self) -> Node | None:
        """The only document of the stream, or None if there is none."""
        self._next()  # the start of the stream
        if isinstance(self._next(), ev.StreamEndEvent):
            return None
        start = self._next()
        tree = self._node(start, depth=0)
        self._next()  # the end of the document
        if not isinstance(self._next(), ev.StreamEndEvent):
            self._report("a recipe file holds one document, and a second one starts here", "write it to its own file")
        empty = isinstance(start, ev.ScalarEvent) and start.value == "" and start.style is None
        return None if empty else tree

    def _next(self) -> Any:
        event: Any = self._loader.get_event()
        self.last = self.position(event.start_mark)
        return event

    def _report(self, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(self.last, message, hint))

    def _node(self, event: Any, depth: int) -> Node:
        where = self.last
        self._nodes += 1
        if depth > DEPTH_LIMIT:
            raise Problem(where, f"nested more than {DEPTH_LIMIT} levels deep").error()
        if self._nodes > NODE_LIMIT:
            raise Problem(where, f"more than {NODE_LIMIT:,} values, which no recipe has").error()
        if isinstance(event, ev.AliasEvent):
            self._report(f"the alias *{event.anchor} is not part of the recipe language", _ALIAS_HINT)
            return Node(None, where)
        if event.anchor is not None:
            self._report(f"the anchor &{event.anchor} is not part of the recipe language", _ALIAS_HINT)
        if event.tag is not None:
            hint = "remove it; a recipe holds plain data only"
            self._report(f"the tag {event.tag!r} is not part of the recipe language", hint)
        if isinstance(event, ev.MappingStartEvent):
            return self._mapping(where, depth)
        if isinstance(event, ev.SequenceStartEvent):
            items = []
            while not isinstance(event := self._next(), ev.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return Node(tuple(items), where)
        return Node(self._scalar(event), where)

    def _mapping(self, where: Position, depth: int) -> Node:
        value: dict[str, Node] = {}
        keys: dict[str, Position] = {}
        while not isinstance(event := self._next(), ev.MappingEndEvent):
            key_where = self.last
            key = self._key(event, depth)
            node = self._node(self._next(), depth + 1)
            if key in value:
                first = f" (first at line {keys[key].line})" if keys[key].line else ""
                self.problems.append(
                    Problem(key_where, f"the key {key!r} is written twice{first}", "keep one of the two")
                )
            elif key is not None:
                value[key], keys[key] = node, key_where
        return Node(value, where, keys)

    def _key(self, event: Any, depth: int) -> str | None:
        where = self.last
        node = self._node(event, depth + 1)
        if node.value == "<<" and event.style is None:
            self.problems.append(Problem(where, "the merge key << is not part of the recipe language", _MERGE_HINT))
            return None
        if not isinstance(node.value, str):
            text = event.value if isinstance(event, ev.ScalarEvent) else "this one"
            message = f"a key must be a string, and {text or 'an empty one'} is not"
            hint = "put it in quotes" if isinstance(event, ev.ScalarEvent) else None
            self.problems.append(Problem(where, message, hint))
            return None
        return node.value

    def _scalar(self, event: Any) -> bool | int | float | str | None:
        bad = _UNPRINTABLE.search(event.value)  # an escape such as "\0" in quotes
        if bad:
            self._report(f"the character U+{ord(bad[0]):04X} is not allowed in a recipe")
            return ""
        if event.style is not None:
            return event.value
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            self._report(str(error))
            return 0
