"""A site's neighbourhood in the graph, as text."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from dmq_fx.roles.values import module_path, shape

BEFORE = 6
AFTER = 4


def neighbourhood(graph: fx.Graph, node_name: str, sites: Mapping[str, str] | None = None) -> list[str]:
    """Lines: what leads to the site's first input, the site, and what reads its output.

    sites: names of sites by node. Nodes that move no values of their own (parameters, tables of scales) are left out.
    Empty if the graph has no such node.
    """
    sites = sites or {}
    node = next((one for one in graph.nodes if one.name == node_name), None)
    if node is None:
        return []
    before: list[fx.Node] = []
    source = _source(node)
    while source is not None and len(before) < BEFORE:
        before.append(source)
        source = _source(source)
    lines = [f"  {_line(one, sites)}" for one in reversed(before)]
    lines.append(f"> {_line(node, sites)}")
    return lines + _readers(node, sites)


def _readers(node: fx.Node, sites: Mapping[str, str]) -> list[str]:
    lines: list[str] = []
    seen: set[fx.Node] = {node}
    level = [node]
    for depth in range(1, AFTER + 1):
        level = [user for one in level for user in one.users if user not in seen]
        level = list(dict.fromkeys(level))
        seen |= set(level)
        for user in level[:6]:
            lines.append(f"{'  ' * depth}{_line(user, sites)}")
        if len(level) > 6:
            lines.append(f"{'  ' * depth}and {len(level) - 6} more")
        if len(level) != 1:
            break
    return lines


def _source(node: fx.Node) -> fx.Node | None:
    """The node that gives the first tensor that is computed."""
    for argument in node.all_input_nodes:
        if argument.op in ("call_function", "call_module", "placeholder"):
            return argument
    return None


def _line(node: fx.Node, sites: Mapping[str, str]) -> str:
    target = getattr(node.target, "overloadpacket", node.target)
    op = getattr(target, "__name__", str(target)) if node.op == "call_function" else node.op
    value = node.meta.get("val")
    sizes = f" [{', '.join(map(str, shape(node)))}]" if isinstance(value, Tensor) else ""
    name = sites.get(node.name) or module_path(node) or node.name
    added = node.meta.get("dmq", {})
    shared = f" (for {', '.join(added['sites'])})" if added.get("sites") else ""
    return f"{op:<24} {name}{sizes}{shared}"
