"""What a plain YAML scalar means: the YAML 1.2 core schema, and nothing more.

Only `true` and `false` are booleans (`yes`, `on` and `off` are strings), `1e-3` is a number, `1:30` and
`2024-01-01` are strings. Numbers must be finite, and integers fit in 64 bits.
"""

from __future__ import annotations

import math
import re

NULL = re.compile(r"(?:~|null|Null|NULL|)")
TRUE = re.compile(r"(?:true|True|TRUE)")
FALSE = re.compile(r"(?:false|False|FALSE)")
INTEGER = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))")

_LONGEST_INTEGER = 19


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """The value of a plain scalar; raises ValueError, with a message for the user, if it is out of range."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text):
        return True
    if FALSE.fullmatch(text):
        return False
    if INTEGER.fullmatch(text):
        return _integer(text)
    if NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]} is too large for a number")
        return number
    return text


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    digits = text.lstrip("+-").removeprefix("0o").removeprefix("0x").lstrip("0")
    if len(digits) > 2 * _LONGEST_INTEGER or abs(number := int(text, base)) >= 2**63:
        raise ValueError(f"an integer of {len(digits)} digits is too long; integers must fit in 64 bits")
    return number
