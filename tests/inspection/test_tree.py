"""The tree and the ranking in a terminal of 80 columns, in a pipe, and with names that mean harm."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dmq_fx.inspection import Inspected, inspect_artifact, ranking_table, select, site_tree


def shown(what: object, *, width: int = 80, terminal: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=terminal, highlight=False).print(what)
    return file.getvalue()


def test_the_tree_follows_the_modules(found: Inspected) -> None:
    text = shown(site_tree("title", found.rows, slots=found.slots))
    assert text.splitlines()[0].rstrip() == "title"
    assert "├── conv_in  conv2d · first" in text and "└── up_blocks" not in text.splitlines()[1]
    assert "A8 per-tensor asym ×4 slots" in text and "decoder half" in text
    assert text.count("conv_shortcut") == len(
        {n["name"].rpartition("conv_shortcut")[0] for n in found.rows if "conv_shortcut" in n["name"]}
    )
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text


@pytest.mark.parametrize("depth", [1, 2])
def test_depth_closes_modules(found: Inspected, depth: int) -> None:
    text = shown(site_tree("title", found.rows, slots=4, depth=depth))
    line = next(line for line in text.splitlines() if "mid_block" in line)
    assert ("sites" in line) == (depth == 1)
    inside = [row for row in found.rows if row["name"].startswith("down_blocks.")]
    if depth == 1:
        worst = min(row["sqnr_db"] for row in inside if row["sqnr_db"] is not None)
        assert f"down_blocks  {len(inside)} sites" in text and f"worst {worst:.1f} dB" in text
    assert len(text.splitlines()) < len(shown(site_tree("title", found.rows, slots=4)).splitlines())


def test_a_ranking_fits_a_terminal(found: Inspected) -> None:
    rows = select(found.rows, worst=5)
    text = shown(ranking_table(rows, found.slots))
    assert max(map(len, text.splitlines())) <= 80
    numbers = [
        float(line.split()[-3])
        for line in text.splitlines()[1:]
        if line.strip()[:1].isdigit() and line.split()[0].isdigit()
    ]
    assert len(numbers) == 5 and numbers == sorted(numbers)


def test_names_are_text(hostile: Path) -> None:
    found = inspect_artifact(hostile)
    for what in (
        site_tree(found.recipe["name"], found.rows, slots=4),
        ranking_table(select(found.rows, sort="sqnr"), 4),
    ):
        text = shown(what, width=300, terminal=True)
        assert "<script>alert(1)</script>[red]x[/]\\x1b[31m\\u202e" in text
        assert "\x1b[31m" not in text and "\u202e" not in text
