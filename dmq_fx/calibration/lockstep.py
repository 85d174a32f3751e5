"""The full-precision model and the quantized one over the same inputs, node by node.

What a site does to its own exact input (`streaming`) says nothing of what reaches it: here every site of the quantized
model reads what the quantized sites before it made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from dmq_fx.calibration.streaming import call_site, nearest_slot, quantized_output, rounded_weight
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Program


@dataclass(frozen=True)
class Both:
    """One value of the graph in full precision and in the quantized model; the same object where nothing differs."""

    exact: Any
    quantized: Any


@dataclass(frozen=True)
class SiteCall:
    """A site's call in both models.

    exact_args: its arguments in full precision. slot: of every sample, [batch]. weight: what its integers stand for;
    None if it has none.
    """

    planned: PlannedSite
    exact_args: tuple[Any, ...]
    exact: Tensor
    quantized: Tensor
    slot: Tensor | None
    weight: Tensor | None = None


Visit = Callable[[SiteCall], Tensor | None]
"""Shown every site's call in execution order; may give what the quantized model goes on with instead of its output."""


class Lockstep(fx.Interpreter):
    """Runs the full-precision graph twice at once: as it is, and with the sites' inputs and weights rounded.

    visit: called with every site of the plan, quantized or not. Biases that it changes in the program hold from the
    next run on.
    """

    def __init__(self, program: Program, visit: Visit = lambda call: None) -> None:
        super().__init__(program.traced.graph_module)
        self._program = program
        self._sites = {planned.site.node: planned for planned in program.plan.sites}
        self._visit = visit
        self._slot: Tensor | None = None

    def forward(self, arguments: tuple[Tensor, ...]) -> Both:
        """Run one denoiser call, without gradients; what both models predict, as the graph gives it."""
        self._slot = nearest_slot(self._program, arguments)
        with torch.no_grad():
            return self.run(*arguments, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        exact = getattr(self, n.op)(n.target, _exact(args), _exact(kwargs))
        if n.op == "output":
            return Both(exact, self.output(n.target, _quantized(args), kwargs))  # type: ignore[arg-type]
        planned = self._sites.get(n.name)
        if planned is not None:
            return self._run_site(planned, exact, args, kwargs)
        if n.op == "get_attr" and n.target in self._program.biases:
            return Both(exact, self._program.biases[str(n.target)].to(exact))
        if n.op != "call_function" or _same((args, kwargs)):
            return Both(exact, exact)
        return Both(exact, self.call_function(n.target, _quantized(args), _quantized(kwargs)))  # type: ignore[arg-type]

    def _run_site(self, planned: PlannedSite, exact: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Both:
        weight = None
        if planned.quantized:
            weight = rounded_weight(self._program, planned, args[1].exact) if planned.site.weight else None
            output = quantized_output(self._program, planned, _quantized(args), self._slot, weight)
        elif _same((args, kwargs)):
            output = exact
        else:
            output = call_site(self._program, planned, _quantized(args))
        replaced = self._visit(SiteCall(planned, _exact(args), exact, output, self._slot, weight))
        return Both(exact, output if replaced is None else replaced)


def prediction(output: Any) -> Tensor:
    """The first tensor of what a graph gives."""
    while isinstance(output, (tuple, list)):
        output = output[0]
    assert isinstance(output, Tensor)
    return output


def _exact(values: Any) -> Any:
    return map_aggregate(values, lambda value: value.exact if isinstance(value, Both) else value)


def _quantized(values: Any) -> Any:
    return map_aggregate(values, lambda value: value.quantized if isinstance(value, Both) else value)


def _same(values: Any) -> bool:
    """Whether nothing among the values differs between the two models."""
    differ: list[Both] = []
    map_aggregate(values, lambda value: differ.append(value) if isinstance(value, Both) else None)
    return all(value.exact is value.quantized for value in differ)
