"""Prompts and guidance: of models that take them, and said of those that do not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import dmq_fx
from dmq_fx.errors import CalibrationError, DmqError
from dmq_fx.models import LoadedModel, load_model
from dmq_fx.sampling import Sampler, SamplerOptions, check_conditioning


@pytest.fixture(scope="module")
def text_to_image(text_to_image_folder: Path) -> LoadedModel:
    return load_model(str(text_to_image_folder))


def test_image_k_is_of_prompt_k_in_turn(text_to_image: LoadedModel) -> None:
    options = SamplerOptions(steps=2, batch=2, prompts=("a cat", "my dog"))
    check_conditioning(text_to_image, options)
    images = torch.cat(list(Sampler(text_to_image, options).run(3)))
    assert images.shape == (3, 3, 16, 16)
    alone = Sampler(text_to_image, SamplerOptions(steps=2, batch=2, seed=1, prompts=("my dog",)))
    torch.testing.assert_close(torch.cat(list(alone.run(1)))[0], images[1], atol=1e-4, rtol=0)
    other = Sampler(text_to_image, SamplerOptions(steps=2, batch=2, seed=1, prompts=("a cat",)))
    assert (torch.cat(list(other.run(1)))[0] - images[1]).abs().max() > 1e-3


def test_a_user_and_a_recipe_are_told_where_prompts_go(text_to_image: LoadedModel) -> None:
    with pytest.raises(DmqError, match=r"^--prompt: the model .* makes images of prompts, and received none") as caught:
        check_conditioning(text_to_image, SamplerOptions())
    assert caught.value.hint == "give --prompt TEXT, or --prompts-file FILE"
    with pytest.raises(CalibrationError, match=r"^calibration.prompts: .* makes images of prompts") as needed:
        list(Sampler(text_to_image, SamplerOptions()).run(1))
    assert "--set 'calibration.prompts=" in (needed.value.hint or "")


def test_a_recipe_without_prompts_is_refused_before_anything_is_sampled(
    text_to_image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "run", None)
    with pytest.raises(CalibrationError, match=r"^calibration.prompts: .* makes images of prompts"):
        dmq_fx.compile("ptq/w8a8", model=str(text_to_image_folder), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_model_does_not_take_is_refused(pipeline_folder: Path, architectures: ModuleType) -> None:
    """Of a pipeline without prompts, as it is loaded with and without its weights, and of a denoiser alone."""
    unconditional = load_model(str(pipeline_folder)), load_model(str(pipeline_folder), weights=False)
    for loaded in (*unconditional, load_model(architectures.tiny_model("dit"))):
        check_conditioning(loaded, SamplerOptions())
        with pytest.raises(DmqError, match="takes no prompts, and received 'a cat' and 1 more") as caught:
            check_conditioning(loaded, SamplerOptions(prompts=("a cat", "my dog")))
        assert (caught.value.where, caught.value.hint) == ("--prompt", "leave out --prompt and --prompts-file")
        with pytest.raises(DmqError, match=r"^--guidance-scale: .* takes no guidance scale, and received 7.5"):
            check_conditioning(loaded, SamplerOptions(guidance_scale=7.5))


def test_a_recipe_may_name_prompts_for_any_model(pipeline_folder: Path) -> None:
    """Its calibration uses them where the model takes some."""
    loaded = load_model(str(pipeline_folder))
    plain, named = (
        torch.cat(list(Sampler(loaded, SamplerOptions(steps=2, prompts=prompts)).run(1))) for prompts in ((), ("a",))
    )
    assert torch.equal(plain, named)
