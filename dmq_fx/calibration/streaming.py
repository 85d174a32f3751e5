"""One forward of the full-precision graph feeds every site: constant memory, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.numerics import IntegerGrid
from dmq_fx.numerics.quantize import fake_quantize
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Activation, Program
from dmq_fx.tracing import TracedModel

SiteCallback = Callable[[PlannedSite, tuple[Any, ...], Tensor], None]


class SiteInterpreter(fx.Interpreter):
    """Runs a graph and shows the arguments and the result of every watched node."""

    def __init__(self, module: fx.GraphModule, sites: Mapping[str, PlannedSite], callback: SiteCallback) -> None:
        super().__init__(module)
        self.sites = sites
        self.callback = callback

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        planned = self.sites.get(n.name)
        if planned is not None:
            self.callback(planned, self.fetch_args_kwargs_from_env(n)[0], result)
        return result


def batches(
    traced: TracedModel, inputs: CalibrationSet, device: torch.device, limit: int | None = None
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Yield (done, arguments of one denoiser call) for every step of the first `limit` batches of samples."""
    for done, (batch, _step, tensors) in enumerate(inputs):
        if limit is not None and batch >= limit:
            return
        yield done, tuple(tensors[path].to(device) for path in traced.input_paths)


def nearest_slot(program: Program, arguments: tuple[Tensor, ...]) -> Tensor | None:
    """Slot of every sample, [batch], as the graph computes it; None if the model has no timestep input."""
    if program.timestep_position is None:
        return None
    timestep = arguments[program.timestep_position]
    table = program.timesteps.to(timestep.device)
    return (timestep.float()[:, None] - table.float()).abs().argmin(1)


def quantized_output(program: Program, planned: PlannedSite, args: tuple[Any, ...], slot: Tensor | None) -> Tensor:
    """What a site gives for full-precision `args` once its inputs and weight are rounded to integers."""
    rounded = list(args)
    for operand in planned.site.operands:
        activation = program.activation_of(planned, operand)
        if activation is not None:
            rounded[operand] = quantized_activation(program, activation, args[operand], slot)
    weight = program.weights.get(planned.site.weight or "")
    if weight is not None:
        rounded[1] = weight.dequantized().to(args[1])
    if planned.site.bias in program.biases:
        rounded[2] = program.biases[planned.site.bias].to(args[2])
    node = program.nodes[planned.site.node]
    assert callable(node.target)
    return node.target(*rounded, **_constants(program, node))


def quantized_activation(program: Program, activation: Activation, x: Tensor, slot: Tensor | None) -> Tensor:
    """x rounded to the integers of its activation, with the range of every sample's own slot."""
    scale, zero_point = program.qparams[activation.index]
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    scale, zero_point = scale.to(x.device), zero_point.to(x.device)
    if activation.spec.per_timestep:
        assert slot is not None
        rows = slot.repeat_interleave(activation.batch_multiple)
        shape = (-1, *([1] * (x.dim() - 1)))
        scale, zero_point = scale[rows].reshape(shape), zero_point[rows].reshape(shape)
    return fake_quantize(x.float(), scale, zero_point, grid).to(x.dtype)


def stream_sites(
    program: Program,
    inputs: CalibrationSet,
    callback: Callable[[PlannedSite, tuple[Any, ...], Tensor, Tensor | None], None],
    *,
    device: torch.device,
    limit: int | None,
    progress: Callable[[int], None],
) -> None:
    """Run the full-precision graph over the calibration inputs and show every quantized site's call.

    callback: (site, arguments, output, slot of every sample). limit: batches of samples, None for all.
    """
    slot: Tensor | None = None

    def forward(planned: PlannedSite, args: tuple[Any, ...], output: Tensor) -> None:
        callback(planned, args, output, slot)

    watched = {planned.site.node: planned for planned in program.plan.sites if planned.quantized}
    interpreter = SiteInterpreter(program.traced.graph_module, watched, forward)
    with torch.no_grad():
        for done, arguments in batches(program.traced, inputs, device, limit):
            slot = nearest_slot(program, arguments)
            interpreter.run(*arguments)
            progress(done + 1)


def _constants(program: Program, node: fx.Node) -> dict[str, Any]:
    """Keyword arguments of a node; those that are nodes must be tensors of the module."""
    return {
        key: get_tensor(program.traced.graph_module, str(value.target)) if isinstance(value, fx.Node) else value
        for key, value in node.kwargs.items()
    }
