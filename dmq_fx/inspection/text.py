"""What a terminal or a page may be shown of names that others chose: text, never markup or control codes."""

from __future__ import annotations

import re

from rich.text import Text

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]")
"""Control characters, line separators, what turns the direction of text around, and halves of surrogate pairs."""


def visible(text: object) -> str:
    """`text` with control characters spelled out.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def plain(text: object, style: str = "") -> Text:
    """`text` for a terminal, with no markup in it."""
    return Text(visible(text), style=style)
