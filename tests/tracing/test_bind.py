"""Calls of the original forward, mapped to the inputs of the graph."""

from typing import Any

import pytest
import torch
from catalog import tiny_inputs, tiny_model, traced_tiny

from dmq_fx.tracing import InputError, bind_inputs, trace
from dmq_fx.tracing.traced import TracedModel


def bind(name: str, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    return bind_inputs(traced_tiny(name), args, kwargs)


SAMPLE = torch.zeros(3, 4, 8, 8)


@pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7, 7])])
def test_timesteps_become_one_value_a_sample(timestep: Any) -> None:
    sample, bound = bind("ddpm", SAMPLE, timestep)
    assert sample is SAMPLE
    assert bound.tolist() == [7, 7, 7]
    assert bound.dtype == torch.int64


def test_fractional_timesteps_stay_fractional() -> None:
    assert bind("ddpm", SAMPLE, 0.5)[1].tolist() == [0.5] * 3
    assert bind("ddpm", SAMPLE, torch.tensor(0.5, dtype=torch.float64))[1].tolist() == [0.5] * 3
    inputs = tiny_inputs("sd3")
    entry = traced_tiny("sd3").input_paths.index("timestep")
    assert bind("sd3", **{**inputs, "timestep": 3})[entry].dtype == torch.float32


def test_positions_names_and_ignored_arguments() -> None:
    inputs = tiny_inputs("sd")
    by_name = bind("sd", **inputs, return_dict=False, cross_attention_kwargs=None, timestep_cond=None)
    by_position = bind("sd", inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"])
    assert all(left is right for left, right in zip(by_name, by_position, strict=True))
    assert len(bind("sd", **inputs, cross_attention_kwargs={}, return_dict=True)) == 3


def test_nested_arguments() -> None:
    inputs = tiny_inputs("sdxl")
    bound = bind("sdxl", **inputs)
    assert bound[-1] is inputs["added_cond_kwargs"]["time_ids"]
    nothing = {"resolution": None, "aspect_ratio": None}
    assert len(bind("pixart-sigma", **tiny_inputs("pixart-sigma"), added_cond_kwargs=nothing)) == 4


def test_integers_of_another_width_are_taken() -> None:
    inputs = tiny_inputs("dit")
    bound = bind("dit", **{**inputs, "class_labels": inputs["class_labels"].to(torch.int32)})
    assert bound[-1].dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": None}, "missing sample\n  hint: traced with sample, timestep, encoder_hidden_states"),
        ({"encoder_hidden_states": None}, "missing encoder_hidden_states"),
        (
            {"class_labels": torch.zeros(2)},
            "has not seen the argument 'class_labels'\n  hint: traced with .*trace again",
        ),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "has not seen the argument 'cross_attention_kwargs.scale'"),
        ({"encoder_hidden_state": torch.zeros(2)}, "unexpected .*\n  hint: did you mean 'encoder_hidden_states'"),
        (
            {"sample": torch.zeros(2, 4, 9, 8)},
            r"sample has shape \[2, 4, 9, 8\], expected \[2, 4, 8, 8\]\n.*dynamic_size",
        ),
        ({"encoder_hidden_states": torch.zeros(2, 78, 12)}, r"shape \[2, 78, 12\], expected \[2, 77, 12\]"),
        ({"encoder_hidden_states": torch.zeros(3, 77, 12)}, r"shape \[3, 77, 12\], expected \[2, 77, 12\]"),
        ({"encoder_hidden_states": torch.zeros(77, 12)}, r"shape \[77, 12\], expected"),
        ({"timestep": torch.zeros(5)}, r"timestep has shape \[5\], expected \[2\]"),
        ({"sample": torch.zeros(2, 4, 8, 8).half()}, r"sample is torch\.float16, and the graph takes torch\.float32"),
        ({"sample": [1, 2]}, "missing sample"),
        ({"sample": 3}, "sample is a int, expected a tensor"),
    ],
)
def test_calls_that_the_graph_cannot_serve(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        bind("sd", **{**tiny_inputs("sd"), **changes})
    assert caught.value.where == "UNet2DConditionModel"


def test_too_many_positions() -> None:
    with pytest.raises(InputError, match="too many positional arguments\n  hint: forward takes sample, timestep"):
        bind("ddpm", *range(9))


class Scaled(torch.nn.Module):
    def forward(self, sample: torch.Tensor, scale: float = 1.0, mode: str = "plain") -> torch.Tensor:
        return sample * scale


@pytest.fixture(scope="module")
def scaled() -> TracedModel:
    return trace(Scaled(), {"sample": torch.ones(2, 3), "scale": 2.0})


def test_constants_must_be_those_of_the_trace(scaled: TracedModel) -> None:
    assert len(bind_inputs(scaled, (SAMPLE[:, :3, 0, 0],), {"scale": 2.0, "mode": "plain"})) == 1
    for call in ({"scale": 3.0}, {}):
        with pytest.raises(InputError, match=r"scale=.*, and the trace has 2\.0"):
            bind_inputs(scaled, (SAMPLE[:, :3, 0, 0],), call)
    with pytest.raises(InputError, match="has not seen the argument 'mode'"):
        bind_inputs(scaled, (SAMPLE[:, :3, 0, 0],), {"scale": 2.0, "mode": "other"})


def test_sizes_must_halve() -> None:
    traced = trace(tiny_model("ddpm", device="meta"), dynamic_size=True)
    with pytest.raises(InputError, match="height and width must be multiples of 4"):
        bind_inputs(traced, (torch.zeros(2, 4, 10, 8), 1), {})
