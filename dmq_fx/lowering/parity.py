"""Whether lowered sites compute what fake quantization does, site by site.

End to end the two cannot be compared number by number: a difference of 1e-7 in front of a rounding moves an integer,
and that moves every integer after it. So every site is given the very input that it has in the fake-quantized model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.lowering.int8_attention import attention_parts
from dmq_fx.program.program import Program

TOLERANCE = 1e-5
"""Largest error of a site that float rounding explains, relative to the largest value of its output."""


def site_errors(fake: Program, lowered: Program, inputs: Sequence[Tensor]) -> dict[str, float]:
    """max |lowered - fake| / max |fake| of every site that reached a kernel, for one call (absolute if fake is zero).

    fake: the quantized program. lowered: the same after `lower_sites`, still in float32. inputs: flat, of samples that
    all have one timestep.
    """
    facts = [node.meta["dmq"] for node in lowered.graph_module.graph.nodes if "kernel" in node.meta.get("dmq", {})]
    reached = {site for fact in facts for site in (fact["site"], *fact.get("with", ()))}
    nodes = {planned.site.node: planned.name for planned in fake.plan.sites if planned.name in reached}
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
        expected = self._expected.pop(facts["site"])
        if "with" not in facts:
            self.errors[facts["site"]] = _error(value, expected)
            return expected
        (scores,) = facts["with"]
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        self.errors |= zip(
            (scores, facts["site"]), _attention_errors(arguments, self._expected.pop(scores)), strict=True
        )
        return expected.reshape(value.shape)


def _error(value: Tensor, expected: Tensor) -> float:
    """max |value - expected| / max |expected|; infinite for what is no number."""
    difference, largest = float((value - expected).abs().max()), float(expected.abs().max())
    error = difference / largest if largest else difference
    return error if math.isfinite(error) else math.inf


def _attention_errors(arguments: Sequence[Any], scores: Tensor) -> tuple[float, float]:
    """Errors of both products of an attention. scores: what the first gives in fake quantization, before its scale.

    Each step is given what the kernel made in the step before. Of the second product: how far probabilities are from
    the nearest integers, as a share of their grid, or the error of the sums, whichever is larger.
    """
    _, _, value, scales, zero_points, scale, low, high = arguments[:8]
    parts = attention_parts(*arguments[:8])
    error = 0.0
    for place in product(*map(range, parts.scores.shape[:2])):
        integers = parts.probabilities[place].double()
        exact = parts.scores[place].double().softmax(-1) / scales[2].double() + zero_points[2]
        beyond = float((integers - exact.clamp(low, high)).abs().max()) - 0.5
        sums = (integers - zero_points[2]) @ (value[place].double() - zero_points[3])
        expected = sums * (scales[2].double() * scales[3].double())
        error = max(error, beyond / (high - low), _error(parts.output[place], expected))
    return _error(parts.scores.reshape(scores.shape) / scale, scores), error
