"""Whether lowered sites compute what fake quantization does, site by site.

End to end the two cannot be compared number by number: a difference of 1e-7 in front of a rounding moves an integer,
and that moves every integer after it. So every site is given the very input that it has in the fake-quantized model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.program.program import Program

TOLERANCE = 1e-5
"""Largest error of a site that float rounding explains, relative to the largest value of its output."""


def site_errors(fake: Program, lowered: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
    """max |lowered - fake| / max |fake| of every site that reached a kernel, for one call (absolute if fake is zero).

    fake: the quantized program. lowered: the same after `lower_sites`, still in float32. inputs: flat, of samples that
    all have one timestep.
    """
    nodes = {planned.site.node: planned.name for planned in fake.plan.sites}
    with torch.no_grad():
        capture = _Capture(fake.graph_module, nodes)
        capture.run(*inputs)
        compare = _Compare(lowered.graph_module, capture.outputs)
        compare.run(*inputs)
    return compare.errors


class _Capture(fx.Interpreter):
    """Keeps the outputs of sites."""

    def __init__(self, module: fx.GraphModule, nodes: dict[str, str]) -> None:
        super().__init__(module)
        self.outputs: dict[str, Tensor] = {}
        self._nodes = nodes

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._nodes:
            self.outputs[self._nodes[n.name]] = value
        return value


class _Compare(fx.Interpreter):
    """Measures every kernel, and goes on with what fake quantization gave in its place."""

    def __init__(self, module: fx.GraphModule, expected: dict[str, Tensor]) -> None:
        super().__init__(module)
        self.errors: dict[str, float] = {}
        self._expected = expected

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        facts = n.meta.get("dmq", {})
        if "kernel" not in facts:
            return value
        expected = self._expected[facts["site"]]
        difference, largest = float((value - expected).abs().max()), float(expected.abs().max())
        error = difference / largest if largest else difference
        self.errors[facts["site"]] = error if math.isfinite(error) else math.inf
        return expected
