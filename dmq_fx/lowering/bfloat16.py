"""bfloat16 for everything between integer kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from dmq_fx.lowering.onednn import KERNEL_CALLS, PREPACK
from dmq_fx.program.graph_tools import finish, get_tensor, record, set_buffer

aten = torch.ops.aten
HALF = torch.bfloat16
FLOAT = "float32"
"""Said of nodes that stay in float32."""

_EXACT = frozenset({"time", "integers", "table", "slot", "activation", "weight", "shifted weight"})
"""Kinds of nodes that make integers out of floats, scales for them, and what the time part gave: as they are."""

_SAME_TYPE = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.linear.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.addmm.default,
        aten.cat.default,
        aten.scaled_dot_product_attention.default,
    }
)
"""Operators whose operands must have one type."""

_NORMS = frozenset({aten.group_norm.default, aten.layer_norm.default, aten.rms_norm.default})
"""Operators that take float32 weights beside values of another type, and compute in float32 anyway."""


_FLOAT_OPERANDS = frozenset({*KERNEL_CALLS, *PREPACK, *_NORMS})
"""Operators whose scales, biases and weights stay in float32."""


def to_bfloat16(graph_module: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    """Change a lowered graph, in place, to compute in bfloat16 between its integer kernels.

    Inputs and outputs keep their types, and so does what is computed before the first kernel and after the last: an
    error there reaches everything, and it is little work. Norms compute in float32 inside and keep their weights;
    kernels write bfloat16. example: inputs that the types of values are found with (shapes matter, values do not).
    """
    graph = graph_module.graph
    kept = {n: n.meta.get("dmq", {}).get("kind") for n in graph.nodes}
    kept |= dict.fromkeys(_angles(graph), FLOAT)
    kept |= dict.fromkeys(_ends(graph), FLOAT)  # as those are that came with this kind
    parameters = _halve_parameters(graph_module, kept)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        values: dict[fx.Node, Any] = {}
        inputs = iter(example)
        for node in list(graph.nodes):
            if node.op == "placeholder":
                values[node] = mode.from_tensor(next(inputs))
            elif node.op == "get_attr":
                values[node] = mode.from_tensor(parameters.get(node, get_tensor(graph_module, str(node.target))))
            elif node.op == "output":
                _restore_outputs(graph, node, values, mode)
            else:
                if kept[node] == FLOAT:
                    _cast_inputs(graph, node, node.all_input_nodes, torch.float32, values)
                elif kept[node] not in _EXACT and node.target not in PREPACK:
                    _prepare(graph, node, values)
                values[node] = _evaluate(node, values)
    for node, tensor in parameters.items():
        set_buffer(graph_module, str(node.target), tensor)
    finish(graph_module)


def _angles(graph: fx.Graph) -> list[fx.Node]:
    """Sines, cosines, and what leads to them: a large angle rounded to eight bits is another angle."""
    waiting = [n for n in graph.nodes if n.target in (aten.sin.default, aten.cos.default)]
    found: dict[fx.Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in found and node.meta.get("dmq", {}).get("kind") not in _EXACT:
            found[node] = None
            waiting += node.all_input_nodes
    return list(found)


def _ends(graph: fx.Graph) -> list[fx.Node]:
    """What is computed before the first kernel, and after the last one."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    places = [place for place, node in enumerate(calls) if node.target in KERNEL_CALLS]
    if not places:
        return []
    outer = [*calls[: places[0]], *calls[places[-1] + 1 :]]
    return [n for n in outer if n.meta.get("dmq", {}).get("kind") not in _EXACT and n.target not in PREPACK]


def _halve_parameters(module: fx.GraphModule, kept: dict[fx.Node, Any]) -> dict[fx.Node, Tensor]:
    """The float32 tensors that only ordinary nodes read, in bfloat16."""
    readers: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(str(node.target), []).extend(node.users)
    halved = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        tensor = get_tensor(module, str(node.target))
        users = readers[str(node.target)]
        exact = any(kept[user] in (*_EXACT, FLOAT) or user.target in _FLOAT_OPERANDS for user in users)
        if tensor.dtype == torch.float32 and not exact:
            halved[node] = tensor.to(HALF)
    return halved


def _prepare(graph: fx.Graph, node: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Give a node operands of one type, or tell a kernel what to write."""
    if node.target in KERNEL_CALLS:
        arguments = list(node.args)
        arguments[arguments.index(torch.float32)] = HALF
        node.args = tuple(arguments)
        return
    if node.target in _NORMS:
        sources = node.all_input_nodes[:1]
    elif node.target in _SAME_TYPE or len(node.all_input_nodes) > 1 or _of_input(node):
        sources = node.all_input_nodes
    else:
        return
    _cast_inputs(graph, node, sources, HALF, values)


def _cast_inputs(
    graph: fx.Graph, node: fx.Node, sources: list[fx.Node], dtype: torch.dtype, values: dict[fx.Node, Any]
) -> None:
    """Have a node read float32 and bfloat16 operands in one of the two types."""
    for source in sources:
        value = values[source]
        if isinstance(value, Tensor) and value.dtype in (torch.float32, HALF) and value.dtype != dtype:
            node.replace_input_with(source, _cast(graph, source, dtype, values))


def _of_input(node: fx.Node) -> bool:
    """Whether a node reads an input of the graph, or what the time part gave, directly."""
    return any(s.op == "placeholder" or s.meta.get("dmq", {}).get("kind") == "time" for s in node.all_input_nodes)


def _cast(graph: fx.Graph, source: fx.Node, dtype: torch.dtype, values: dict[fx.Node, Any]) -> fx.Node:
    """`source` in another type; one cast serves all that ask for it."""
    for user in source.users:
        if user.target is aten.to.dtype and user.args[1] == dtype and user in values:
            return user
    with graph.inserting_after(source):
        cast = record(graph.call_function(aten.to.dtype, (source, dtype)), kind="cast")
    cast.meta |= {key: fact for key, fact in source.meta.items() if key == "val"}
    values[cast] = values[source].to(dtype)
    return cast


def _evaluate(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    arguments, keywords = (
        map_aggregate(part, lambda x: values[x] if isinstance(x, fx.Node) else x) for part in (node.args, node.kwargs)
    )
    return node.target(*arguments, **keywords)  # type: ignore[operator]


def _restore_outputs(graph: fx.Graph, end: fx.Node, values: dict[fx.Node, Any], mode: FakeTensorMode) -> None:
    for source in end.all_input_nodes:
        value = values[source]
        if isinstance(value, Tensor) and value.dtype == HALF:
            end.replace_input_with(source, _cast(graph, source, torch.float32, values))
