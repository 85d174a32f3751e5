"""The quantized graph for Model Explorer, sites' facts as overlays; built with that package's own builders."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.errors import DmqError
from dmq_fx.inspection.rows import bits
from dmq_fx.inspection.scheme_text import fold_text, scheme_text
from dmq_fx.inspection.text import visible
from dmq_fx.inspection.viz import need
from dmq_fx.program.graph_tools import working_copy
from dmq_fx.program.program import Program
from dmq_fx.roles.values import module_path, shape
from dmq_fx.tracing import retarget

GRAPH = "graph"
LOW_TO_HIGH = (("#b2182b", 0.0), ("#f7f7f7", 0.5), ("#2166ac", 1.0))
LIGHT_TO_DARK = (("#fff7bc", 0.0), ("#d95f0e", 1.0))
ROLE_COLORS = ("#8dd3c7", "#ffffb3", "#bebada", "#fb8072", "#80b1d3", "#fdb462", "#b3de69", "#fccde5", "#d9d9d9")


def build_graph(program: Program, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The program's graph as Model Explorer's `Graph`: modules as layers, quantize and dequantize nodes as nodes.

    rows: of `dmq_fx.inspection.rows`; their facts are attributes of the sites' nodes. Raises DmqError without the
    extra `viz`.
    """
    builder = need("model_explorer.graph_builder")
    by_name = {row["name"]: row for row in rows}
    sites = {planned.site.node: by_name[planned.name] for planned in program.plan.sites if planned.name in by_name}
    paths = _paths(program.graph_module.graph)
    graph = builder.Graph(id=GRAPH)
    for node in program.graph_module.graph.nodes:
        made = builder.GraphNode(
            id=node.name,
            label=_label(node),
            namespace="/".join(map(visible, paths[node].split("."))) if paths[node] else "",
        )
        for place, source in enumerate(node.all_input_nodes):
            made.incomingEdges.append(builder.IncomingEdge(sourceNodeId=source.name, targetNodeInputId=str(place)))
        facts = _facts(node, sites.get(node.name), len(program.timesteps))
        made.attrs = [builder.KeyValue(key=key, value=visible(value)) for key, value in facts]
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            text = f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, shape(node)))}]"
            attribute = builder.KeyValue(key="tensor_shape", value=text)
            made.outputsMetadata.append(builder.MetadataItem(id="0", attrs=[attribute]))
        graph.nodes.append(made)
    return graph


def _label(node: fx.Node) -> str:
    """`conv2d`, `quantize_per_channel`, a parameter's name, ..."""
    if node.op == "call_function":
        packet = getattr(node.target, "overloadpacket", node.target)
        return str(getattr(packet, "__name__", packet))
    return visible(node.target) if node.op in ("get_attr", "call_module") else node.name


def _paths(graph: fx.Graph) -> dict[fx.Node, str]:
    """The module that each node is shown in, dotted.

    What dmq put there belongs to no module: its nodes stand with the sites that read them, in the module that all of
    these share; parameters with their first reader.
    """
    paths: dict[fx.Node, str] = {}
    for node in reversed(graph.nodes):
        own = module_path(node)
        if node.op in ("placeholder", "output"):
            paths[node] = ""
        elif own and node.op != "get_attr":
            paths[node] = own
        else:
            paths[node] = _shared([paths[user] for user in node.users if user.op != "output"])
    return paths


def _shared(paths: Sequence[str]) -> str:
    """The innermost module that holds all of `paths`."""
    same = takewhile(lambda level: len(set(level)) == 1, zip(*(path.split(".") for path in paths), strict=False))
    return ".".join(level[0] for level in same)


def _facts(node: fx.Node, row: Mapping[str, Any] | None, slots: int) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if row is not None:
        facts += [
            ("site", row["name"]),
            ("scheme", scheme_text(row, slots)),
            ("roles", " ".join(row["roles"])),
            ("rule", row.get("rule") or ""),
            ("folds", fold_text(row.get("folds"))),
            ("SQNR, dB", "" if row.get("sqnr_db") is None else str(row["sqnr_db"])),
            ("bytes", "" if row.get("bytes") is None else str(row["bytes"])),
        ]
    added = node.meta.get("dmq", {})
    facts += [(f"dmq: {key}", " ".join(v) if isinstance(v, tuple) else str(v)) for key, v in sorted(added.items())]
    facts.append(("target", str(node.target)))
    constants = [str(argument) for argument in node.args if isinstance(argument, (int, float, str, bool, torch.dtype))]
    if constants:
        facts.append(("constants", ", ".join(constants)))
    return [(key, value) for key, value in facts if value]


def build_overlays(
    program: Program, rows: Sequence[Mapping[str, Any]], seconds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Node data by name: SQNR, weight and activation bits, size, role; of every node with a time, its share of it.

    seconds: by node, of `node_seconds`.
    """
    nodes = {planned.name: planned.site.node for planned in program.plan.sites}
    of_site = {nodes[row["name"]]: row for row in rows if row["name"] in nodes}
    overlays: dict[str, Any] = {}
    total = sum(seconds.values()) if seconds else 0.0
    if seconds and total:
        shares = {node: round(100 * spent / total, 3) for node, spent in seconds.items()}
        overlays["time share (%)"] = _numbers(shares, LIGHT_TO_DARK)
    sizes = {n: r["bytes"] for n, r in of_site.items() if r.get("bytes") is not None}
    errors = {n: r["sqnr_db"] for n, r in of_site.items() if r.get("sqnr_db") is not None}
    overlays |= {
        "role": _words({n: r["roles"][0] if r["roles"] else "none" for n, r in of_site.items()}),
        "size (bytes)": _numbers(sizes, LIGHT_TO_DARK),
        "activation bits": _numbers({n: bits(r, "activation") for n, r in of_site.items()}, LOW_TO_HIGH),
        "weight bits": _numbers({n: bits(r, "weight") for n, r in of_site.items() if r["shape"]}, LOW_TO_HIGH),
        "SQNR (dB)": _numbers(errors, LOW_TO_HIGH),  # last: the one that is shown first
    }
    return {name: overlay for name, overlay in overlays.items() if overlay.results}


def _numbers(values: Mapping[str, float], gradient: Sequence[tuple[str, float]]) -> Any:
    builder = need("model_explorer.node_data_builder")
    results = {node: builder.NodeDataResult(value=value) for node, value in values.items()}
    stops = [builder.GradientItem(stop=stop, bgColor=color) for color, stop in gradient]
    return builder.GraphNodeData(results=results, gradient=stops)


def _words(values: Mapping[str, str]) -> Any:
    builder = need("model_explorer.node_data_builder")
    colors = dict(zip(sorted(set(values.values())), ROLE_COLORS * len(values), strict=False))
    results = {
        node: builder.NodeDataResult(value=word, bgColor=colors[word], textColor="#000000")
        for node, word in values.items()
    }
    return builder.GraphNodeData(results=results)


def node_seconds(program: Program, rounds: int = 3) -> dict[str, float]:
    """Seconds that each node takes in one call of the fake-quantized graph with one sample; the least of `rounds`.

    Inputs are random numbers: times do not depend on them.
    """
    module = working_copy(program.graph_module)
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    retarget(module, device)  # it may have been traced without one
    generator = torch.Generator().manual_seed(0)
    inputs = [_random(example, entry.batched, generator).to(device) for example, entry in _examples(program)]
    clock = _Clock(module)
    with torch.no_grad():
        for _ in range(rounds):
            clock.run(*inputs)
    return clock.seconds


def _examples(program: Program) -> list[tuple[Tensor, Any]]:
    return list(zip(program.traced.example, program.traced.inputs, strict=True))


def _random(example: Tensor, batched: bool, generator: torch.Generator) -> Tensor:
    sizes = (1, *example.shape[1:]) if batched else tuple(example.shape)
    if example.is_floating_point():
        return torch.randn(sizes, generator=generator).to(example.dtype)
    return torch.zeros(sizes, dtype=example.dtype)


class _Clock(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        started = time.perf_counter()
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_cuda:
            torch.cuda.synchronize(value.device)
        if n.op in ("call_function", "call_module"):
            spent = time.perf_counter() - started
            self.seconds[n.name] = min(spent, self.seconds.get(n.name, spent))
        return value


def write_graph(path: str | Path, graph: Any, overlays: Mapping[str, Any], label: str) -> list[Path]:
    """Write a graph for Model Explorer, and each overlay beside it as `STEM.NAME.json`; all paths.

    Raises DmqError if they cannot be written.
    """
    target = Path(path)
    collection = need("model_explorer.graph_builder").GraphCollection(label=visible(label), graphs=[graph])
    model = need("model_explorer.node_data_builder").ModelNodeData
    texts = {target: json.dumps(asdict(collection))}
    try:
        for name, overlay in overlays.items():
            slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
            texts[target.with_name(f"{target.stem}.{slug}.json")] = model({GRAPH: overlay}).to_json_string()
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # a ValueError: `/`, or a name that no file has
        why = getattr(error, "strerror", None) or error
        hint = "use a file in a folder that exists"
        raise DmqError(f"cannot write the graph: {why}", where=str(path), hint=hint) from error
    return list(texts)
