"""The integers in front of kernels, held against those of fake quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from small_programs import TIMESTEPS, Pair, kernel_nodes
from torch import Tensor, fx, nn

from dmq_fx.program.program import Activation

aten = torch.ops.aten


class Values(fx.Interpreter):
    """Keeps the values of a graph's nodes, by name; `instead` may hand others on."""

    def __init__(self, module: fx.GraphModule, instead: Callable[[fx.Node, Any], Any]) -> None:
        super().__init__(module)
        self.seen: dict[str, Any] = {}
        self._instead = instead

    def run_node(self, n: fx.Node) -> Any:
        self.seen[n.name] = super().run_node(n)
        return self._instead(n, self.seen[n.name])


def values_of(
    module: fx.GraphModule, given: Sequence[Tensor], instead: Callable[[fx.Node, Any], Any] = lambda node, value: value
) -> dict[str, Any]:
    """The value of every node."""
    values = Values(module, instead)
    with torch.no_grad():
        values.run(*given)
    return values.seen


def same_integers(pair: Pair, given: Sequence[Tensor]) -> dict[str, bool]:
    """Whether each kernel reads the integers of fake quantization, bit for bit, and zeros around them.

    As in `site_errors`, every site has the input that it has in the fake-quantized model.
    """
    by_name = pair.fake.plan.by_name
    fake = values_of(pair.fake.graph_module, given)
    calls = kernel_nodes(pair.lowered.graph_module.graph)
    outputs = {call.name: fake[by_name[site].site.node] for site, call in calls.items()}
    lowered = values_of(pair.lowered.graph_module, given, lambda node, value: outputs.get(node.name, value))
    integers: dict[int, Tensor] = {}
    for node in pair.fake.graph_module.graph.nodes:
        facts = node.meta.get("dmq", {})
        if facts.get("kind") == "activation":
            integers.setdefault(facts["activation"], fake[node.name])
    found = {}
    for site, call in calls.items():
        activation = pair.fake.activation_of(by_name[site], 0)
        assert activation is not None
        source: Any = call.args[0]
        while source.target != aten.to.dtype:
            source = source.args[0]
        zero = _zero_point(pair, activation, given[1])
        found[site] = _agree(lowered[source.name], integers[activation.index], activation, zero)
    return found


def _zero_point(pair: Pair, activation: Activation, timesteps: Tensor) -> int:
    slot = int((timesteps[0] - TIMESTEPS).abs().argmin()) if activation.spec.per_timestep else 0
    return int(pair.fake.qparams[activation.index].zero_point[slot])


def _agree(found: Tensor, expected: Tensor, activation: Activation, zero: int) -> bool:
    """expected: of the grid, signed if it is symmetric. found: uint8, and higher by one number then."""
    margins = [(a - b) // 2 for a, b in zip(found.shape, expected.shape, strict=True)]
    padding = [margin for margin in reversed(margins) for _ in range(2)]
    wanted = nn.functional.pad(expected.to(torch.int32), padding, value=zero)
    offset = (found.to(torch.int32) - wanted).unique().tolist()
    lowest = 2 ** (activation.spec.bits - 1)
    allowed = range(lowest, 128 + 1) if activation.spec.symmetric else range(1)
    return found.dtype == torch.uint8 and len(offset) == 1 and offset[0] in allowed
