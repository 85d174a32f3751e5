"""An artifact beside its model, with and without full precision's weights."""

from __future__ import annotations

import json
import shutil
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


def test_a_configuration_is_compared_where_it_states_something(
    artifact: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder, folder)
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    del config["act_fn"]
    path.write_text(json.dumps(config))
    assert not open_pair(artifact, model=str(folder), weights=False).reference.has_weights
    path.write_text(json.dumps({**config, "act_fn": "gelu"}))
    with pytest.raises(ModelError, match="is not the one that this artifact was compiled from"):
        open_pair(artifact, model=str(folder), weights=False)


@pytest.mark.parametrize("weights", [True, False])
def test_another_model(artifact: Path, weights: bool) -> None:
    with pytest.raises(ModelError, match="is not the one that this artifact was compiled from"):
        open_pair(artifact, model="builtin:ddpm-mnist", weights=weights)
