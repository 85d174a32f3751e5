"""Two toy passes, and a folder to write recipes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import resolve
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How the steps are weighted."""

    kind: str = option("which weighting", default="uniform", choices=("uniform", "focal"))
    gamma: float = option("strength", default=20.0, minimum=0.0)


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """Learned scaling."""

    iterations: int = option("steps of the optimizer", default=100, minimum=1, maximum=100_000)
    learning_rate: float = option("of the optimizer", default=1e-3, exclusive_minimum=0.0, exclusive_maximum=1.0)
    weighting: Weighting = option("weights of the sampler's steps", factory=Weighting)
    limit: float | None = option("largest factor", default=None, minimum=1.0)
    blocks: tuple[str, ...] = option("blocks to work on", default=())

    def __post_init__(self) -> None:
        if self.iterations == 13:
            raise ValueError("13 iterations bring bad luck")


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    pass


@dataclass(frozen=True, kw_only=True)
class ShiftOptions:
    max_shift: int = option("largest shift", minimum=0, maximum=3)


@pytest.fixture(scope="session")
def pass_options() -> Mapping[str, type]:
    return {"les": ScalingOptions, "split": SplitOptions, "pts": ShiftOptions}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that errors name files without a path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def failure(folder: Path, pass_options: Mapping[str, type]) -> Callable[..., str]:
    """Write a recipe to `recipe.yaml`, and give back the error of resolving it."""

    def fail(text: str | bytes, *overrides: str) -> str:
        data = text.encode() if isinstance(text, str) else text
        (folder / "recipe.yaml").write_bytes(data)
        with pytest.raises(RecipeError) as caught:
            resolve("recipe.yaml", overrides=overrides, pass_options=pass_options)
        return str(caught.value)

    return fail
