"""What `list` and `search` print: a line a recipe, its newest version, and where it is from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from dmq_fx.cli.support import errors, output_console
from dmq_fx.errors import DmqError

if TYPE_CHECKING:
    from dmq_fx.sharing.catalog import Found


def print_rows(rows: Sequence[Found]) -> None:
    """A table of recipes. Texts of remotes are printed as they are, without markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "newest", "from", "summary"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "summary")
    from rich.text import Text

    for row in rows:
        table.add_row(*(Text(part) for part in (row.name, str(row.newest), row.place, row.summary)))
    output_console().print(table)


def print_failures(failures: Iterable[DmqError]) -> None:
    """Remotes that could not be read, on stderr."""
    for failure in failures:
        errors.print(f"note: {failure}", markup=False, highlight=False)
