"""What tests share: the catalog of architectures, a small trained-like model, and an artifact of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import catalog
import pytest
import torch

from dmq_fx.calibration.store import CalibrationCache


@pytest.fixture(scope="session")
def architectures() -> ModuleType:
    """`tests/architectures/catalog.py`: tiny models of every family, published configs."""
    return catalog


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CalibrationCache:
    """A calibration cache that is not the user's."""
    return CalibrationCache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """No test reads or writes the user's folders."""
    patch = pytest.MonkeyPatch()
    for kind in ("CACHE", "CONFIG", "DATA"):
        patch.setenv(f"XDG_{kind}_HOME", str(tmp_path_factory.mktemp(f"home-{kind.lower()}")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, architectures: ModuleType) -> Path:
    """A `DDIMPipeline` folder around a tiny UNet2DModel with random weights, 16x16 RGB."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    architectures._randomise(unet, 0)
    folder = tmp_path_factory.mktemp("model") / "tiny-ddpm"
    DDIMPipeline(unet=unet.eval(), scheduler=DDIMScheduler(clip_sample=True)).save_pretrained(folder)
    return folder


FAST = ("calibration.samples=8", "calibration.batch=4", "calibration.steps=4")
"""Overrides that make a compile of a tiny model quick."""


@pytest.fixture(scope="session")
def fast() -> tuple[str, ...]:
    return FAST


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, pipeline_folder: Path, cache: CalibrationCache) -> Path:
    """`ptq/w8a8` of the tiny pipeline."""
    import dmq_fx

    path = tmp_path_factory.mktemp("artifact") / "w8a8"
    dmq_fx.compile("ptq/w8a8", model=str(pipeline_folder), output=path, overrides=FAST, cache=cache)
    return path


@pytest.fixture(autouse=True)
def _threads() -> None:
    """Results must not depend on how many workers run beside."""
    torch.set_num_threads(1)
