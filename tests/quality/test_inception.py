"""FID's Inception with random weights; torch-fidelity 0.4.0 gives the same bits with the same."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from dmq_fx.errors import ModelError
from dmq_fx.quality.features import FeatureExtractor, load_extractor
from dmq_fx.quality.inception import FidInception, resize_like_tensorflow1
from dmq_fx.quality.inception_weights import FILE_NAME, load_inception

PUBLISHED = {
    "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
    "Conv2d_4a_3x3.bn.running_var": [192],
    "Mixed_5b.branch_pool.conv.weight": [32, 192, 1, 1],
    "Mixed_5c.branch5x5_2.conv.weight": [64, 48, 5, 5],
    "Mixed_5d.branch3x3dbl_3.bn.weight": [96],
    "Mixed_6a.branch3x3.conv.weight": [384, 288, 3, 3],
    "Mixed_6b.branch7x7_2.conv.weight": [128, 128, 1, 7],
    "Mixed_6d.branch1x1.conv.weight": [192, 768, 1, 1],
    "Mixed_6e.branch7x7dbl_4.conv.weight": [192, 192, 7, 1],
    "Mixed_7a.branch7x7x3_4.conv.weight": [192, 192, 3, 3],
    "Mixed_7b.branch3x3_2a.conv.weight": [384, 384, 1, 3],
    "Mixed_7c.branch3x3dbl_3b.conv.weight": [384, 384, 3, 1],
    "Mixed_7c.branch3x3dbl_1.conv.weight": [448, 2048, 1, 1],
    "fc.weight": [1008, 2048],
    "fc.bias": [1008],
}


@pytest.fixture(scope="module")
def extractor(inception_weights: Path) -> FeatureExtractor:
    return load_extractor("inception", inception_weights)


def test_names_and_shapes_are_those_of_the_published_weights() -> None:
    with torch.device("meta"):
        network = FidInception()
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert PUBLISHED.items() <= shapes.items()
    assert len(shapes) == 94 * 6 + 2  # convolutions with their normalization, and the last layer
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960


def test_features_are_those_of_the_layers_that_scores_are_defined_on(inception_weights: Path) -> None:
    network, seen = load_inception(inception_weights), {}
    for name in ("Mixed_6d.branch1x1", "Mixed_7b", "Mixed_7c"):
        network.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.update({name: (i[0], o)}))
    for name in ("Mixed_7b.branch_pool", "Mixed_7c.branch_pool"):
        network.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: seen.update({name: i[0]}))
    output = network(torch.randint(0, 256, (2, 3, 40, 32), generator=torch.Generator().manual_seed(1)).float())
    assert [list(part.shape) for part in output] == [[2, 2048], [2, 7, 17, 17], [2, 1008]]
    assert torch.equal(output.spatial, seen["Mixed_6d.branch1x1"][1][:, :7])  # mixed_6/conv of the TensorFlow graph
    torch.testing.assert_close(output.pooled, seen["Mixed_7c"][1].mean((2, 3)))
    torch.testing.assert_close(output.logits, output.pooled @ network.fc.weight.T)  # without the bias
    assert network.fc.bias.abs().min() > 0
    average = functional.avg_pool2d(seen["Mixed_7b"][0], 3, 1, 1) * 9
    ones = functional.avg_pool2d(torch.ones(1, 1, 8, 8), 3, 1, 1) * 9
    torch.testing.assert_close(seen["Mixed_7b.branch_pool"], average / ones)  # does not count the padding
    assert torch.equal(seen["Mixed_7c.branch_pool"], functional.max_pool2d(seen["Mixed_7c"][0], 3, 1, 1))


def test_resize_is_tensorflow_1s() -> None:
    row = torch.tensor([0.0, 10.0]).reshape(1, 1, 1, 2)
    assert resize_like_tensorflow1(row, 1, 4).flatten().tolist() == [0, 5, 10, 10]
    assert resize_like_tensorflow1(row.mT, 4, 1).flatten().tolist() == [0, 5, 10, 10]
    column = torch.arange(6.0).reshape(1, 1, 6, 1)
    assert resize_like_tensorflow1(column, 3, 1).flatten().tolist() == [0, 2, 4]  # nothing is averaged
    images = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_like_tensorflow1(images, 299, 299), images)


def test_extractor_reads_any_size_and_grey(extractor: FeatureExtractor) -> None:
    images = torch.randint(0, 256, (1, 1, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    features = extractor(images)
    assert [part.shape[1] for part in (features.pooled, features.spatial, features.logits)] == [2048, 2023, 1008]
    assert torch.equal(extractor(images.float() / 255).pooled, features.pooled)
    assert (extractor.name, extractor.channels, extractor.size) == ("inception", 3, None)


def test_weights_are_the_same_whatever_the_file(
    inception_state: dict[str, Tensor], extractor: FeatureExtractor, tmp_path: Path
) -> None:
    """Counters of training batches, which some conversions have, are no weights."""
    path = tmp_path / "weights.safetensors"
    save_file({**inception_state, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}, path)
    assert load_extractor("inception", path).digest == extractor.digest


def test_the_hubs_cache_is_used(
    inception_weights: Path, extractor: FeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / FILE_NAME
    cached.parent.mkdir(parents=True)
    cached.symlink_to(inception_weights)
    assert load_extractor("inception").digest == extractor.digest
    assert capsys.readouterr().out == ""


def test_no_network_is_an_error_that_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    with pytest.raises(ModelError, match=r"Inception's weights cannot be fetched: .*name resolution") as caught:
        load_extractor("inception")
    assert caught.value.hint is not None and "`--feature-extractor PATH`" in caught.value.hint
    assert FILE_NAME in caught.value.hint


class NoTensor:
    """What a pickle could build by running code."""


def test_files_that_are_no_such_weights(inception_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ModelError, match="the file does not exist"):
        load_inception(path)
    with pytest.raises(ModelError, match="a file, and this is a folder"):
        load_inception(tmp_path)
    small = {name: tensor.new_zeros(()).expand(tensor.shape) for name, tensor in inception_state.items()}
    torch.save({**small, "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ModelError, match=r"fc.bias has shape \[1000\], and FID's Inception-v3 has \[1008\]"):
        load_inception(path)
    torch.save({**small, "AuxLogits.fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ModelError, match=r"not the weights of FID's Inception-v3: 1 unknown \(AuxLogits.fc.bias\)"):
        load_inception(path)
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(ModelError, match=r"471 missing \(Conv2d_1a_3x3.bn.bias, "):
        load_inception(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ModelError, match="not a state dict of tensors"):
        load_inception(path)
    torch.save({"fc.bias": NoTensor()}, path)
    with pytest.raises(ModelError, match="not readable as weights: "):
        load_inception(path)
    (tmp_path / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="not readable as safetensors"):
        load_inception(tmp_path / "weights.safetensors")
