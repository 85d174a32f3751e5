"""The error that rounding makes in the output of one site, as a function of its equivalent scaling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dmq_fx.calibration.extremes import Extremes
from dmq_fx.calibration.streaming import call_site
from dmq_fx.numerics import ChannelGrid, Grid, IntegerGrid, quantize_weight, weight_grid
from dmq_fx.numerics.equivalent_scaling import ScaledFakeQuantize, affine_scale, fake_quantize_weight
from dmq_fx.planning import PlannedSite
from dmq_fx.program.graph_tools import get_tensor
from dmq_fx.program.program import Program, along_inputs
from dmq_fx.program.scaling_groups import ScalingGroup
from dmq_fx.recipe.language import ActivationSpec, WeightSpec


class LocalLoss:
    """Losses |f(Q(x / gamma), Q(W gamma)) - f(x, W)|^2 of the sites of some groups, differentiable in gamma.

    Activations are rounded on the range that their slot's extremes have after the scaling, close to what the graph will
    use (observers may average over batches, or clip); weights on their own range at the moment, times the part of it
    that the scheme's search keeps of W.
    """

    def __init__(self, program: Program, groups: Sequence[ScalingGroup], extremes: dict[int, Extremes]) -> None:
        self.program = program
        self.extremes = extremes
        self.group_of = {planned.name: group for group in groups for planned in group.sites}
        self._shrink: dict[str, Tensor] = {}

    def of_site(
        self, planned: PlannedSite, args: Sequence[Any], output: Tensor, slot: Tensor | None, gamma: Tensor
    ) -> Tensor:
        """Mean squared error of every sample, float32 [samples], for gamma [channels].

        args, output: the site's full-precision call. slot: [samples], the slot of every sample of the batch.
        """
        weight_spec = planned.weight
        assert weight_spec is not None
        x = args[0].float()
        rounded = self.rounded_input(planned, x, slot, gamma)
        weight = get_tensor(self.program.traced.graph_module, planned.site.weight or "").detach().float()
        bits = self.program.channel_bits.get(planned.site.weight or "")
        levels = weight_grid(weight_spec, None if bits is None else bits.to(weight.device))
        shrink = self._shrink_of(planned.name, weight, weight_spec, levels)
        quantized = fake_quantize_weight(weight * along_inputs(gamma, weight), len(shrink), shrink, levels)
        rest = [argument.float() if isinstance(argument, Tensor) else argument for argument in args[2:]]
        result = call_site(self.program, planned, (rounded, quantized, *rest))
        samples = len(slot) if slot is not None else len(x)
        return (result - output.float()).square().reshape(samples, -1).mean(1)

    def rounded_input(self, planned: PlannedSite, x: Tensor, slot: Tensor | None, gamma: Tensor) -> Tensor:
        """Q(x / gamma) of a site's input, float32, differentiable in gamma."""
        group = self.group_of[planned.name]
        spec = group.activation.spec
        rows = slot.repeat_interleave(len(x) // len(slot)) if slot is not None and spec.per_timestep else None
        scale, zero_point = self._activation_scale(group, spec, gamma, rows, len(x))
        grid = IntegerGrid(spec.bits, spec.symmetric)
        return ScaledFakeQuantize.apply(x, gamma, scale, zero_point, grid, group.axis)  # type: ignore[no-any-return]

    def _activation_scale(
        self, group: ScalingGroup, spec: ActivationSpec, gamma: Tensor, rows: Tensor | None, samples: int
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every row of the activation, [rows] each."""
        found = self.extremes[group.activation.index]
        low, high = (found.low / gamma).amin(1), (found.high / gamma).amax(1)
        scale, zero_point = affine_scale(low, high, IntegerGrid(spec.bits, spec.symmetric))
        if rows is None:
            return scale.expand(samples), zero_point.expand(samples)
        return scale[rows], zero_point[rows]

    def _shrink_of(self, name: str, weight: Tensor, spec: WeightSpec, grid: Grid) -> Tensor:
        """The part of each scale's min-max range that the scheme's own range takes, [scales]."""
        if name not in self._shrink:
            bits = grid.bits if isinstance(grid, ChannelGrid) else None
            found = quantize_weight(weight, spec, bits).scale.reshape(-1)
            flat = weight.reshape(len(found), -1)
            widest, _ = affine_scale(flat.amin(1), flat.amax(1), grid)
            self._shrink[name] = (found / widest).clamp(0.05, 1.0)
        return self._shrink[name]
