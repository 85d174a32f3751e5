"""One forward of the full-precision graph feeds every site: constant memory, whatever the number of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.numerics import IntegerGrid
from dmq_fx.numerics.quantize import dequantize, quantize
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import channel_axis
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


def quantized_output(
    program: Program,
    planned: PlannedSite,
    args: tuple[Any, ...],
    slot: Tensor | None,
    weight: Tensor | None = None,
) -> Tensor:
    """What a site gives for full-precision `args` once its inputs and weight are rounded to integers.

    weight: `rounded_weight` of the site, from a caller that has it already.
    """
    rounded = list(args)
    for operand in planned.site.operands:
        activation = program.activation_of(planned, operand)
        if activation is not None:
            rounded[operand] = quantized_activation(program, activation, args[operand], slot)
    if planned.site.weight is not None:
        weight = rounded_weight(program, planned, args[1]) if weight is None else weight
        rounded[1] = args[1] if weight is None else weight
    if planned.site.bias in program.biases:
        rounded[2] = program.biases[planned.site.bias].to(args[2])
    return call_site(program, planned, tuple(rounded))


def rounded_weight(program: Program, planned: PlannedSite, exact: Tensor) -> Tensor | None:
    """What the integers of a site's weight stand for, like its full-precision weight `exact`; None without integers."""
    weight = program.weights.get(planned.site.weight or "")
    return None if weight is None else weight.dequantized().to(exact)


def call_site(program: Program, planned: PlannedSite, args: tuple[Any, ...]) -> Tensor:
    """What a site's node computes of `args`."""
    node = program.nodes[planned.site.node]
    assert callable(node.target)
    return node.target(*args, **_constants(program, node))


def quantized_activation(program: Program, activation: Activation, x: Tensor, slot: Tensor | None) -> Tensor:
    """x rounded to the integers of its activation, with the range of every sample's own slot.

    Of an activation with equivalent scaling, x / gamma, which is what the sites' integer weights expect.
    """
    scale, zero_point = (part.to(x.device) for part in program.qparams[activation.index])
    grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
    rows = (
        slot.repeat_interleave(activation.batch_multiple) if activation.spec.per_timestep and slot is not None else None
    )
    if rows is not None:
        shape = (-1, *([1] * (x.dim() - 1)))
        scale, zero_point = scale[rows].reshape(shape), zero_point[rows].reshape(shape)
    up, down = activation_factors(program, activation, x, rows)
    before, after = (scale if factor is None else scale * factor for factor in (up, down))
    return dequantize(quantize(x.float(), before, zero_point, grid), after, zero_point).to(x.dtype)


def activation_factors(
    program: Program, activation: Activation, x: Tensor, rows: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """What multiplies the scale before rounding, gamma 2^-k, and after it, 2^-k; broadcast against x. None for 1.

    rows: slot of every row of x; None where there is one range.
    """
    gamma, shifts = program.input_scales.get(activation.index), program.shifts.get(activation.index)
    if gamma is None and shifts is None:
        return None, None
    axis = channel_axis(program, activation)
    assert axis is not None
    if shifts is None:
        assert gamma is not None
        return gamma.to(x.device).float().reshape(-1, *([1] * (x.dim() - 1 - axis))), None
    powers = torch.pow(2.0, -shifts.float()).to(x.device)
    if len(powers) > 1 and rows is not None:
        powers = powers[rows]
    shape = (len(powers), *([1] * (axis - 1)), -1, *([1] * (x.dim() - 1 - axis)))
    down = powers.reshape(shape)
    return (down if gamma is None else (powers * gamma.to(powers)).reshape(shape)), down


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
    show = site_viewer(program, callback)
    for done, arguments in batches(program.traced, inputs, device, limit):
        show(arguments)
        progress(done + 1)


def site_viewer(
    program: Program,
    callback: Callable[[PlannedSite, tuple[Any, ...], Tensor, Tensor | None], None],
    *,
    autocast: bool = False,
) -> Callable[[tuple[Tensor, ...]], None]:
    """A function that runs the full-precision graph once and shows every quantized site's call.

    callback: (site, arguments, output, slot of every sample), called without gradients. autocast: convolutions and
    products in bfloat16.
    """
    slot: Tensor | None = None

    def forward(planned: PlannedSite, args: tuple[Any, ...], output: Tensor) -> None:
        callback(planned, args, output, slot)

    watched = {planned.site.node: planned for planned in program.plan.sites if planned.quantized}
    interpreter = SiteInterpreter(program.traced.graph_module, watched, forward)

    def run(arguments: tuple[Tensor, ...]) -> None:
        nonlocal slot
        slot = nearest_slot(program, arguments)
        device = arguments[0].device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            interpreter.run(*arguments)

    return run


def _constants(program: Program, node: fx.Node) -> dict[str, Any]:
    """Keyword arguments of a node; those that are nodes must be tensors of the module."""
    return {
        key: get_tensor(program.traced.graph_module, str(value.target)) if isinstance(value, fx.Node) else value
        for key, value in node.kwargs.items()
    }
