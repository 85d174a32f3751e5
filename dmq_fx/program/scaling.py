"""Where equivalent and power-of-two scaling end up: in the quantize node, in integer weights, in a norm.

An activation that is scaled is quantized as q = round(x / (s gamma_c 2^-k_c)) + z. Its consumers' weights were rounded
as W gamma, and so dequantize q with s 2^-k_c. Where the shifted integers of the weights fit int8, 2^-k_c leaves the
activation for them: dequantize with s 2^-K, K the largest k, and shift the weights of channel c left by K - k_c.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from dmq_fx.numerics import IntegerGrid, QuantizedWeight
from dmq_fx.planning import PlannedSite
from dmq_fx.program.program import Activation, Program, along_inputs

INT8 = IntegerGrid(8, True)


@dataclass(frozen=True)
class ChannelFactors:
    """What multiplies an activation's scale, float32 [slots or 1, channels].

    quantize: before rounding. dequantize: after it; a number where all channels have the same.
    """

    quantize: Tensor
    dequantize: Tensor | float


def channel_axis(program: Program, activation: Activation) -> int | None:
    """The axis of the channels that the weights of an activation's sites sum over; None if that is not one axis.

    None as well for products of activations and grouped convolutions, whose inputs cannot be scaled by channel.
    """
    axes = set()
    for planned in sites_of(program, activation):
        shape, value = planned.site.weight_shape, program.nodes[activation.producer].meta["val"]
        if shape is None or planned.weight is None:
            return None
        axis = value.dim() - 1 if planned.site.op == "linear" else 1
        if value.shape[axis] != shape[1]:
            return None
        axes.add(axis)
    return axes.pop() if len(axes) == 1 else None


def sites_of(program: Program, activation: Activation) -> tuple[PlannedSite, ...]:
    """The sites that read an activation."""
    by_name = program.plan.by_name
    return tuple(by_name[name] for name in activation.sites)


def channel_factors(program: Program, activation: Activation) -> ChannelFactors | None:
    """The factors as the graph has them, on the CPU; None for an activation that is not scaled by channel."""
    shifts = program.shifts.get(activation.index)
    gamma = program.input_scales.get(activation.index)
    gamma = None if gamma is None or activation.index in program.folded else gamma.float().cpu()
    if shifts is None:
        return None if gamma is None else ChannelFactors(gamma[None], 1.0)
    powers = torch.pow(2.0, -shifts.float().cpu())
    quantize = powers if gamma is None else powers * gamma
    largest = largest_shift(program, activation)
    return ChannelFactors(quantize, powers if largest is None else 2.0**-largest)


def largest_shift(program: Program, activation: Activation) -> int | None:
    """K, if the shifts of an activation go into the integers of all its weights; None if they cannot."""
    shifts = program.shifts.get(activation.index)
    if shifts is None or shifts.shape[0] != 1:
        return None  # masks of every timestep would need weights of every timestep
    largest = int(shifts.max())
    uses = Counter(planned.site.weight for planned in program.plan.sites)
    for planned in sites_of(program, activation):
        if planned.weight is None or uses[planned.site.weight] > 1:
            return None  # a weight that other inputs meet as well can hold the shifts of none
        if not fits_shifted(planned, largest):
            return None
    return largest


def fits_shifted(planned: PlannedSite, shift: int) -> bool:
    """Whether a site's integers, less their zero point and shifted left, are int8."""
    assert planned.weight is not None
    grid = IntegerGrid(planned.widest_bits, planned.weight.symmetric)
    extreme = -grid.qmin if grid.symmetric else grid.qmax
    return extreme << shift <= (-INT8.qmin if grid.symmetric else INT8.qmax)


def placed_weight(program: Program, planned: PlannedSite, weight: QuantizedWeight) -> QuantizedWeight:
    """The integers as the graph has them: with the shifts of the input, where they go into the weights.

    Shifted integers are int8 without a zero point: (q - z) << (K - k_c).
    """
    activation = program.activation_of(planned, 0)
    largest = largest_shift(program, activation) if activation is not None else None
    if activation is None or largest is None:
        return weight
    rows = weight.integers.reshape(max(weight.zero_point.numel(), 1), -1).to(torch.int32)
    centred = (rows - weight.zero_point.reshape(-1, 1)).reshape(weight.integers.shape)
    left = (largest - program.shifts[activation.index][0]).to(centred)
    shifted = centred * torch.pow(2, along_inputs(left, centred))
    return QuantizedWeight(shifted.to(torch.int8), weight.scale, torch.zeros_like(weight.zero_point), INT8)
