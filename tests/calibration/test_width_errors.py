"""Errors by output channel, against what the whole layer gives."""

import pytest
import torch
from small_programs import CHANNELS, TIMESTEPS, W4, grouped, inputs, traced_layers
from torch import nn

from dmq_fx.calibration.extremes import Extremes
from dmq_fx.calibration.local_loss import LocalLoss
from dmq_fx.calibration.streaming import call_site, site_viewer
from dmq_fx.calibration.width_errors import WidthErrors
from dmq_fx.errors import CalibrationError
from dmq_fx.numerics import quantize_weight
from dmq_fx.program.program import along_inputs
from dmq_fx.program.scaling_groups import ScalingGroup
from dmq_fx.recipe.language import ActivationSpec


@pytest.fixture
def program():
    traced = traced_layers(
        ("image", nn.Conv2d(CHANNELS, 4, 3, padding=1)),
        ("image", nn.Conv2d(CHANNELS, 4, 3, groups=2, bias=False)),
        ("line", nn.Conv1d(CHANNELS, 5, 1)),
        ("tokens", nn.Linear(CHANNELS, 7)),
        ("row", nn.Linear(CHANNELS, 3, bias=False)),
    )
    found = grouped(traced, (W4, ActivationSpec(bits=6, per_timestep=True)))
    for activation in found.activations:
        if "layers.1" not in activation.sites:  # of a grouped convolution, which cannot be scaled
            found.input_scales[activation.index] = torch.linspace(0.5, 2, CHANNELS)
    return found


def rounded(program):
    found = {}
    for planned in program.plan.sites:
        scaled, out = program.scaled_weight(planned), planned.site.shape[0]
        widths = (torch.full((out,), 2), torch.arange(out) % 3 + 2, torch.full((out,), 4))
        found[planned.site.weight] = tuple(quantize_weight(scaled, planned.weight, bits) for bits in widths)
    return found


@pytest.mark.parametrize("round_inputs", [False, True])
def test_channels_add_up_to_the_error_of_the_layer(program, round_inputs):
    local = None
    if round_inputs:
        groups = [
            ScalingGroup(a, tuple(program.plan.by_name[s] for s in a.sites), 0, CHANNELS)
            for a in program.activations
            if "layers.1" not in a.sites
        ]
        groups = [ScalingGroup(g.activation, g.sites, _axis(g.sites[0]), CHANNELS) for g in groups]
        limit = torch.full((len(TIMESTEPS), CHANNELS), 4.0)
        local = LocalLoss(program, groups, {g.activation.index: Extremes(-limit, limit) for g in groups})
    weights = rounded(program)
    errors, expected, count = WidthErrors(program, weights, local), {}, {}

    def collect(planned, args, output, slot):
        errors.add(planned, args, output, slot)
        gamma = program.input_scale(planned)
        gamma = torch.ones(CHANNELS) if gamma is None else gamma
        for place, weight in enumerate(weights[planned.site.weight]):
            values = weight.dequantized()
            if local is None or planned.name == "layers.1":
                scaled = values if planned.name == "layers.1" else values / along_inputs(gamma, values)
                found = call_site(program, planned, (args[0], scaled, *args[2:]))
            else:
                x = local.rounded_input(planned, args[0], slot, gamma)
                found = call_site(program, planned, (x, values, *args[2:]))
            key = planned.site.weight, place
            expected[key] = expected.get(key, 0.0) + float((found - output).double().square().sum())
            count[key] = count.get(key, 0) + output.numel()

    show = site_viewer(program, collect)
    for timestep in (900, 100):
        show(inputs(timestep, 3, seed=timestep))
    outputs = {planned.site.weight: planned.site.shape[0] for planned in program.plan.sites}
    for (name, place), total in expected.items():
        channels = errors.mean(name)[place]
        assert channels.shape == (outputs[name],)
        assert float(channels.sum()) == pytest.approx(total / count[name, place], rel=1e-4)


def _axis(planned):
    return {"layers.0": 1, "layers.2": 1, "layers.3": 2, "layers.4": 1}[planned.name]


def test_outputs_that_are_not_finite_are_named(program):
    show = site_viewer(program, WidthErrors(program, rounded(program)).add)
    sample, timestep = inputs(900)
    with pytest.raises(CalibrationError, match="the outputs of this site are not finite") as error:
        show((sample * torch.inf, timestep))
    assert error.value.where == "layers.0"
