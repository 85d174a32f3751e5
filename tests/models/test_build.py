"""Building a denoiser without weights."""

import torch
from catalog import TINY, tiny_model

from dmq_fx.models import build_denoiser, config_of


def test_tables_that_are_no_weights_hold_values_on_a_real_device() -> None:
    """Position tables are not in the state dict: building must compute them, even though it skips initialisation."""
    table = tiny_model("dit").pos_embed.pos_embed
    assert torch.isfinite(table).all()
    assert table.abs().max() > 0.5


def test_building_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    tiny_model("ddpm", device="meta")
    build_denoiser("UNet2DModel", config_of(tiny_model("ddpm", device="meta")), device="cpu")
    assert torch.equal(torch.get_rng_state(), state)


def test_config_builds_the_same_model_again() -> None:
    for name in TINY:
        denoiser = tiny_model(name, device="meta")
        again = build_denoiser(type(denoiser).__name__, config_of(denoiser))
        shapes = {key: value.shape for key, value in denoiser.state_dict().items()}
        assert {key: value.shape for key, value in again.state_dict().items()} == shapes, name


def test_parts_that_diffusers_keeps_in_float32() -> None:
    denoiser = build_denoiser(
        "WanTransformer3DModel", config_of(tiny_model("wan", device="meta")), dtype=torch.bfloat16
    )
    dtypes = {name: parameter.dtype for name, parameter in denoiser.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
