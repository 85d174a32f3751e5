"""Read a recipe file: bytes to text to a tree. Nothing but RecipeError leaves this module."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dmq_fx.errors import RecipeError, did_you_mean
from dmq_fx.recipe.problems import Problem
from dmq_fx.recipe.tree import Node, Position
from dmq_fx.recipe.yaml_reader import read_yaml

SIZE_LIMIT = 1_000_000
"""Bytes of a recipe file."""


@dataclass(frozen=True)
class Source:
    """A recipe file as it was read. sha256: of its bytes, in hex."""

    file: str
    tree: Node
    sha256: str


def read_source(path: Path, sha256: str | None = None) -> Source:
    """Read and parse the file at `path`; the root of its tree is a mapping.

    sha256: what the file must have; it is compared before anything is parsed.
    """
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        message = f"the file was changed: it has the SHA-256 {digest[:12]}…, not {sha256[:12]}…"
        raise RecipeError(message, where=str(path), hint="remove it, and pull the recipe again")
    return Source(str(path), read_recipe_text(decode(data, str(path)), str(path)), digest)


def read_recipe_text(text: str, file: str) -> Node:
    """Parse the text of a recipe; `file` is what errors call it."""
    tree = read_yaml(text, file)
    if tree is None:
        raise RecipeError("the recipe is empty", where=file, hint="a recipe begins with `dmq: 1` and a `name:`")
    if not tree.is_mapping:
        raise Problem(tree.where, f"a recipe is a mapping, got {describe(tree.value)}").error()
    return tree


def describe(value: object) -> str:
    """What was received, for an error: `the string 'eight'`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"the integer {value}"
    if isinstance(value, float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the string {shorten(value)}"
    return "a mapping" if isinstance(value, dict) else "a list"


def shorten(text: str) -> str:
    """`text` in quotes, cut to a length that fits an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read_bytes(path: Path) -> bytes:
    """The bytes of a recipe file, at most `SIZE_LIMIT` of them."""
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", where=str(path), hint=_neighbours(path)) from None
    except IsADirectoryError:
        raise RecipeError("this is a directory, not a recipe file", where=str(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"cannot read the file: {reason}", where=str(path)) from None
    if len(data) > SIZE_LIMIT:
        message = f"the file is larger than {SIZE_LIMIT:,} bytes, which no recipe is"
        raise RecipeError(message, where=str(path), hint="is this a recipe, and not a model or a log?")
    return data


def _neighbours(path: Path) -> str | None:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return f"there is no directory {str(path.parent)!r}"
    return did_you_mean(path.name, names)


def decode(data: bytes, file: str) -> str:
    """The text of a recipe file."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        where = Position(file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        message = f"the byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise Problem(where, message, "save the file as UTF-8").error() from None
