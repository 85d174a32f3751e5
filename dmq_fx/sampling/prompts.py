"""Prompts from a file: one a line."""

from __future__ import annotations

from pathlib import Path

from dmq_fx.errors import DmqError


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, without those that are blank; image k has prompt k, in turn.

    Raises DmqError for a file that cannot be read, is no text, or has no prompts.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DmqError(f"cannot read the prompts: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DmqError("the prompts are not UTF-8 text", where=f"{path}:{line}") from error
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise DmqError("the file has no prompts", where=str(path), hint="one prompt a line")
    return found
