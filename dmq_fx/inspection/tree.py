"""Sites as a tree that follows the model's modules, for terminals of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from rich.tree import Tree

from dmq_fx.inspection.scheme_text import decibels_text, fold_text, scheme_text, size_text
from dmq_fx.inspection.text import plain


@dataclass
class Branch:
    """A module: what it holds by name, and the sites that are named exactly so."""

    children: dict[str, Branch] = field(default_factory=dict)
    sites: list[Mapping[str, Any]] = field(default_factory=list)

    def all_sites(self) -> Iterator[Mapping[str, Any]]:
        """The sites here and below."""
        yield from self.sites
        for child in self.children.values():
            yield from child.all_sites()


def site_tree(title: str, rows: Sequence[Mapping[str, Any]], *, slots: int | None, depth: int | None = None) -> Tree:
    """A rich tree of `rows`; depth: levels of modules that are opened, all for None.

    A module with one entry shares its line: `resnets.0`. A closed module tells its sites' number, size and worst SQNR.
    """
    tree = Tree(plain(title, "bold"), guide_style="dim")
    _grow(tree, _hierarchy(rows), slots, depth)
    return tree


def _hierarchy(rows: Sequence[Mapping[str, Any]]) -> Branch:
    root = Branch()
    for row in rows:
        branch = root
        for part in row["name"].split("."):
            branch = branch.children.setdefault(part, Branch())
        branch.sites.append(row)
    return root


def _grow(tree: Tree, branch: Branch, slots: int | None, depth: int | None) -> None:
    for name, child in branch.children.items():
        while len(child.children) == 1 and not child.sites:
            ((inner, grandchild),) = child.children.items()
            name, child = f"{name}.{inner}", grandchild
        for row in child.sites:
            tree.add(_leaf(name, row, slots))
        if not child.children:
            continue
        if depth is not None and depth <= 1:
            tree.add(_summary(name, list(child.all_sites())))
        else:
            _grow(tree.add(plain(name, "bold")), child, slots, None if depth is None else depth - 1)


def _leaf(name: str, row: Mapping[str, Any], slots: int | None) -> Text:
    facts = [row["op"], " ".join(row["roles"]), decibels_text(row.get("sqnr_db")), size_text(row.get("bytes"))]
    text = plain(name, "cyan").append_text(plain("  " + " · ".join(fact for fact in facts if fact)))
    quantized = bool(row.get("weight") or row.get("activation"))
    text.append("\n").append_text(plain(scheme_text(row, slots), "" if quantized else "dim"))
    folds = fold_text(row.get("folds"))
    return text.append("\n").append_text(plain(folds, "dim")) if folds else text


def _summary(name: str, sites: Sequence[Mapping[str, Any]]) -> Text:
    measured = [row["sqnr_db"] for row in sites if row.get("sqnr_db") is not None]
    facts = [f"{len(sites)} sites", size_text(sum(row.get("bytes") or 0 for row in sites))]
    facts += [f"worst {min(measured):.1f} dB"] if measured else []
    return plain(name, "bold").append_text(plain("  " + " · ".join(facts)))
