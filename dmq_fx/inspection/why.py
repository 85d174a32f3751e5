"""Why a site has its scheme: the rules that match it, in the order in which they are asked, and who wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dmq_fx.recipe.build import build
from dmq_fx.recipe.language import Rule
from dmq_fx.recipe.matching import matches
from dmq_fx.recipe.tree import Node
from dmq_fx.sites import PRODUCTS, Site, part_of

if TYPE_CHECKING:
    from dmq_fx.recipe.chain import Chain


@dataclass(frozen=True)
class Reason:
    """A rule or value that speaks of a site. where: `file:line:column`. holds: it decided, and nothing before it."""

    where: str
    text: str
    holds: bool


def site_of(row: Mapping[str, Any]) -> Site:
    """As much of a site as rules look at, from its row."""
    shape = tuple(row["shape"])
    return Site(
        name=row["name"],
        op=row["op"],
        node="",
        roles=tuple(row["roles"]),
        operands=(),
        weight="weight" if shape else None,
        bias=None,
        weight_shape=shape or None,
        macs=row["macs"],
        pads=False,
    )


def whole_sites(row: Mapping[str, Any], splits: Sequence[str] = ()) -> list[Site]:
    """The site that the rules were asked about: of a part of a split one, the whole."""
    site = site_of(row)
    part = part_of(site.name, splits)
    if part is None:
        return [site]
    op = "attention" if part in PRODUCTS else site.op
    return [replace(site, name=site.name.removesuffix(f".{part}"), op=op), site]


def rule_reasons(files: Sequence[tuple[str, Node]], sites: Sequence[Site], decided: str | None) -> list[Reason]:
    """The rules that match, of files nearest first; the first one decides, unless a `--set` did.

    files: (name, tree in normal form). sites: the site, or what it was before a split. decided: where the rule stands
    that the plan names, if it does.
    """
    found: list[Reason] = []
    for _, tree in files:
        rules = tree.get("rules")
        for place, entry in enumerate(rules.entries() if rules else ()):
            rule: Rule = build(entry, Rule, {})
            if any(matches(rule.match, site) for site in sites):
                where, text = str(entry.where), f"rules[{place}]  {rule_text(entry)}"
                found.append(Reason(where, text, (where == decided) if decided else not found))
    if decided and not any(reason.holds for reason in found):
        found.insert(0, Reason(decided, "a rule that was changed on the command line", True))
    return found


def rule_text(entry: Node) -> str:
    """A rule on one line."""
    rule = entry.plain()
    match = ", ".join(f"{key}: {_short(value)}" for key, value in (rule.get("match") or {}).items())
    rest = ", ".join(f"{key}: {_short(value)}" for key, value in rule.items() if key in ("scheme", "passes"))
    return f"match {{{match}}} -> {rest}"


def scheme_reasons(files: Sequence[tuple[str, Node]], overrides: Sequence[str], scheme: str) -> list[Reason]:
    """Every value of a scheme, where it is written; `--set` first, then files nearest first."""
    found: list[Reason] = []
    taken: set[str] = set()
    for override in reversed(overrides):
        path, _, value = override.partition("=")
        path = path.strip()
        if _within(path, f"schemes.{scheme}"):
            holds = not any(_within(path, one) for one in taken)
            found.append(Reason(f"--set {override}", f"{path} = {value}", holds))
            taken.add(path)
    for _, tree in files:
        schemes = tree.get("schemes")
        node = schemes.get(scheme) if schemes else None
        for path, value in _leaves(node, f"schemes.{scheme}") if node else ():
            holds = not any(_within(path, one) or _within(one, path) for one in taken)
            found.append(Reason(str(value.where), f"{path} = {_short(value.plain())}", holds))
        if node:
            taken |= {path for path, _ in _leaves(node, f"schemes.{scheme}")}
    return found


def _within(path: str, outer: str) -> bool:
    """`path` is the key `outer`, or one below it."""
    return path == outer or path.startswith(f"{outer}.")


def _leaves(node: Node, path: str) -> list[tuple[str, Node]]:
    if not node.is_mapping:
        return [(path, node)]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}")]


def chain_files(chain: Chain, applied: Sequence[str]) -> list[tuple[str, Node]]:
    """A recipe and its parents, nearest first, for the functions above; each below its overlays that are applied.

    applied: where those overlays are written, as `ResolvedRecipe.overlays` has them.
    """
    files: list[tuple[str, Node]] = []
    for file in chain.files:
        overlays = [overlay for overlay in file.overlays if overlay.where in applied]
        files += [(file.file, overlay.tree) for overlay in reversed(overlays)]
        files.append((file.file, file.tree))
    return files


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")
