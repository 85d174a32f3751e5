"""A fingerprint changes with weights, names, dtypes and config, and with nothing else."""

import pytest
import torch
from catalog import tiny_model
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models import fingerprint


def test_same_model_same_fingerprint() -> None:
    first, second = tiny_model("ddpm"), tiny_model("ddpm")
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 64


def test_one_changed_number_changes_it() -> None:
    denoiser = tiny_model("ddpm")
    before = fingerprint(denoiser)
    denoiser.conv_out.bias.data[0] += 1e-6
    assert fingerprint(denoiser) != before


def test_dtype_and_config_change_it() -> None:
    denoiser = tiny_model("ddpm")
    before = fingerprint(denoiser)
    assert fingerprint(tiny_model("ddpm").to(torch.bfloat16)) != before
    denoiser.register_to_config(norm_eps=1e-3)
    assert fingerprint(denoiser) != before


def test_modules_without_config_and_tensors_that_are_not_contiguous() -> None:
    linear = nn.Linear(3, 4)
    before = fingerprint(linear)
    linear.weight.data = linear.weight.data.t().contiguous().t()
    assert fingerprint(linear) == before


def test_meta_has_none() -> None:
    with pytest.raises(ModelError, match="the model has no weights"):
        fingerprint(tiny_model("ddpm", device="meta"))
