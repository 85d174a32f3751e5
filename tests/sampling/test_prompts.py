"""Prompts from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import DmqError
from dmq_fx.sampling import read_prompts


def test_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffein Haus\r\n\n  a red car, night  \n木\n".encode())
    assert read_prompts(path) == ("ein Haus", "a red car, night", "木")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no prompts"), (b" \n\n", "no prompts"), (b"fine\n\xff\xfe\n", r"prompts.txt:2: the prompts are not UTF-8")],
)
def test_what_is_no_file_of_prompts(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(DmqError, match=message):
        read_prompts(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DmqError, match="cannot read the prompts: No such file"):
        read_prompts(tmp_path / "gone.txt")
