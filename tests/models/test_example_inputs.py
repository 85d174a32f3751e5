"""Example inputs: what the pipelines pass in."""

import inspect

import pytest
import torch
from catalog import FULL, TINY, tiny_inputs, tiny_model
from torch import nn
from torch.utils import _pytree as pytree

from dmq_fx.errors import ModelError, TraceError
from dmq_fx.models import example_inputs, load_denoiser_on_meta


@pytest.mark.parametrize("name", TINY)
def test_arguments_are_those_of_forward(name: str) -> None:
    inputs = tiny_inputs(name, batch=3)
    parameters = list(inspect.signature(type(tiny_model(name, device="meta")).forward).parameters)
    assert set(inputs) <= set(parameters)
    assert inputs[parameters[1]].shape[0] == 3
    assert inputs["timestep"].shape == (3,)


@pytest.mark.parametrize("name", TINY)
def test_equal_shapes_on_every_device(name: str) -> None:
    real, meta = tiny_inputs(name), tiny_inputs(name, device="meta")
    assert pytree.tree_map(lambda t: (t.shape, t.dtype), real) == pytree.tree_map(lambda t: (t.shape, t.dtype), meta)
    again = tiny_inputs(name)
    assert pytree.tree_all(lambda equal: equal, pytree.tree_map(torch.equal, real, again))


def test_sizes_of_published_models() -> None:
    def shapes(name: str) -> dict:
        inputs = example_inputs(load_denoiser_on_meta(f"config:{FULL[name]}").denoiser)
        return pytree.tree_map(lambda tensor: tuple(tensor.shape), inputs)

    assert shapes("ddpm-cifar10") == {"sample": (2, 3, 32, 32), "timestep": (2,)}
    assert shapes("sd15")["encoder_hidden_states"] == (2, 77, 768)
    assert shapes("sdxl")["added_cond_kwargs"] == {"text_embeds": (2, 1280), "time_ids": (2, 6)}
    assert shapes("pixart-alpha-1024")["encoder_hidden_states"] == (2, 120, 4096)
    assert shapes("pixart-alpha-1024")["added_cond_kwargs"] == {"resolution": (2, 2), "aspect_ratio": (2, 1)}
    assert shapes("pixart-sigma-1024")["encoder_hidden_states"] == (2, 300, 4096)
    assert "added_cond_kwargs" not in shapes("pixart-sigma-1024")
    assert shapes("flux1-dev")["hidden_states"] == (2, 4096, 64)
    assert shapes("flux1-dev")["img_ids"] == (4096, 3)
    assert shapes("cogvideox-2b")["hidden_states"] == (2, 13, 16, 60, 90)


def test_another_size() -> None:
    denoiser = tiny_model("ddpm", device="meta")
    assert example_inputs(denoiser, size=(16, 24))["sample"].shape == (2, 4, 16, 24)


def test_unknown_class() -> None:
    with pytest.raises(TraceError, match="the inputs of Linear are not known\n  hint: pass inputs= "):
        example_inputs(nn.Linear(2, 2))


def test_unknown_added_conditions() -> None:
    denoiser = tiny_model("sd", device="meta")
    denoiser.register_to_config(addition_embed_type="image")
    with pytest.raises(TraceError, match="addition_embed_type='image'"):
        example_inputs(denoiser)


def test_a_configuration_that_makes_no_inputs() -> None:
    model = tiny_model("ddpm", device="meta")
    model.register_to_config(sample_size="x")
    with pytest.raises(ModelError, match="no inputs of UNet2DModel follow from its configuration") as caught:
        example_inputs(model)
    assert "sample_size" in (caught.value.hint or "")
