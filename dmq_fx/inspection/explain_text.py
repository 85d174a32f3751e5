"""An explanation for terminals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from rich.text import Text

from dmq_fx.inspection.explain import Explanation
from dmq_fx.inspection.text import plain
from dmq_fx.inspection.why import Reason


def explain_lines(found: Explanation) -> Iterator[Text]:
    """What `dmq explain` prints."""
    yield plain(found.site, "bold")
    width = max(len(what) for what, _ in found.facts)
    for what, text in found.facts:
        yield plain(f"  {what:<{width}}  {text or '–'}")
    yield plain("rules that match, in the order in which they are asked", "bold")
    if not found.rules:
        yield plain("  none: the site stays in full precision")
    yield from _reasons(found.rules, "decides", "comes later")
    if found.scheme:
        yield plain("the scheme's values", "bold")
        yield from _reasons(found.scheme, "holds", "overridden")
    if found.numbers:
        yield plain("what the passes found", "bold")
        for name, value in found.numbers:
            yield plain(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
    if found.neighbours:
        yield plain("in the graph", "bold")
        for line in found.neighbours:
            yield plain(f"  {line}")
    for note in found.notes:
        yield plain(f"note: {note}", "dim")


def _reasons(reasons: Sequence[Reason], yes: str, no: str) -> Iterator[Text]:
    width = max((len(yes if reason.holds else no) for reason in reasons), default=0)
    for reason in reasons:
        style = "" if reason.holds else "dim"
        yield plain(f"  {yes if reason.holds else no:<{width}}  {reason.text}", style)
        yield plain(f"  {'':<{width}}  {reason.where}", "dim")
