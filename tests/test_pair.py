"""An artifact beside its model, with and without full precision's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmq_fx.errors import ModelError
from dmq_fx.pair import open_pair, sample
from dmq_fx.sampling import SamplerOptions


def test_images_need_no_weights_of_full_precision(artifact: Path) -> None:
    options = SamplerOptions(steps=2, batch=2)
    whole, bare = (open_pair(artifact, weights=weights) for weights in (True, False))
    assert whole.reference.has_weights and not bare.reference.has_weights
    assert bare.reference.origin == whole.reference.origin and bare.reference.pipeline is not None
    first, second = (sample(pair, 3, options, lambda what, done, total: None) for pair in (whole, bare))
    assert torch.equal(first, second)


@pytest.mark.parametrize("weights", [True, False])
def test_another_model(artifact: Path, weights: bool) -> None:
    with pytest.raises(ModelError, match="is not the one that this artifact was compiled from"):
        open_pair(artifact, model="builtin:ddpm-mnist", weights=weights)
