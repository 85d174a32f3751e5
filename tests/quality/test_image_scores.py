"""Scores of images themselves, with libraries' networks in small and with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from dmq_fx.errors import DmqError, ModelError
from dmq_fx.quality.image_scores import clip_score, load_lpips, lpips, psnr


def pictures(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_psnr_by_hand() -> None:
    exact = torch.full((6, 1, 8, 8), 0.5)
    assert psnr([(exact + 0.1, exact)]) == pytest.approx(20)
    assert psnr([(exact[:2] + 0.1, exact[:2]), (exact[2:] + 0.1, exact[2:])]) == pytest.approx(20)
    # of the mean squared error of all images, not the mean of their PSNRs
    assert psnr([(exact[:1] + 0.1, exact[:1]), (exact[:1] + 0.3, exact[:1])]) == pytest.approx(13.0103, abs=1e-4)
    assert psnr([((exact * 255).byte(), torch.zeros(6, 1, 8, 8))]) == pytest.approx(6.0547, abs=1e-4)  # 127 of 255
    assert psnr([(exact, exact)]) is None


def test_images_that_do_not_pair() -> None:
    with pytest.raises(DmqError, match=r"images of shapes \[2, 3, 8, 8\] and \[3, 3, 8, 8\] do not pair"):
        psnr([(torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8))])
    with pytest.raises(DmqError, match="there are no pairs of images"):
        psnr([])


def test_lpips_grows_with_noise(alexnet: None) -> None:
    exact = pictures(4)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1))
    metric = load_lpips()
    worse = [lpips([((exact + amount * noise).clamp(0, 1), exact)], metric) for amount in (0, 0.02, 0.1, 0.4)]
    assert worse[0] == 0 and worse == sorted(worse) and worse[-1] > 3 * worse[1] > 0
    far = (exact + 0.1 * noise).clamp(0, 1)
    assert lpips([(far[:3], exact[:3]), (far[3:], exact[3:])], metric) == pytest.approx(worse[2], rel=1e-5)


def test_lpips_reads_grey_and_saved_images(alexnet: None) -> None:
    exact, other = pictures(2)[:, :1], pictures(2, seed=1)[:, :1]
    metric = load_lpips()
    repeated = lpips([(other.expand(-1, 3, -1, -1), exact.expand(-1, 3, -1, -1))], metric)
    assert lpips([(other, exact)], metric) == repeated
    assert lpips([((other * 255).round().byte(), exact)], metric) == repeated
    with pytest.raises(DmqError, match=r"LPIPS has no network 'resnet'\n  hint: alex, vgg or squeeze"):
        load_lpips("resnet")


def test_lpips_whose_weights_cannot_be_fetched(alexnet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(weights: None) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torchvision"].models, "alexnet", unreachable)
    with pytest.raises(ModelError, match="alex: LPIPS's weights cannot be fetched: no route to host"):
        load_lpips()


def test_lpips_says_that_torchvision_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmq_fx.quality.libraries.find_spec", lambda name: None)
    with pytest.raises(DmqError, match="LPIPS needs torchvision, which is not installed\n  hint: pip install"):
        load_lpips()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, letters: CLIPTokenizer) -> Path:
    """A CLIP of one layer with random weights, which reads letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(letters), "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**text, "pad_token_id": 1},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


PROMPTS = ["a cat", "the dog", "nothing"]


def test_clip_score_is_the_cosine_of_images_and_prompts(clip: Path) -> None:
    images = pictures(3, 32)
    model, tokens = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    pixels = CLIPImageProcessor.from_pretrained(clip)(images=list((images * 255).round().byte()), return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens(PROMPTS, padding=True, return_tensors="pt"), **pixels)
    cosines = (output.image_embeds * output.text_embeds).sum(1)
    expected = max(100 * float(cosines.mean()), 0)
    assert clip_score([(images, PROMPTS)], str(clip)) == pytest.approx(expected, abs=1e-3)
    assert clip_score([(images[:1], PROMPTS[:1]), (images[1:], PROMPTS[1:])], str(clip)) == pytest.approx(
        expected, abs=1e-3
    )


def test_clip_scores_that_cannot_be_taken(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DmqError, match="a prompt for each image: 3 images, 2 prompts"):
        clip_score([(pictures(3, 32), PROMPTS[:2])], str(clip))
    with pytest.raises(DmqError, match="there are no images"):
        clip_score([], str(clip))
    with pytest.raises(ModelError, match=r"the CLIP model cannot be loaded: .*\n  hint: give the folder of a CLIP"):
        clip_score([(pictures(3, 32), PROMPTS)], str(tmp_path))
