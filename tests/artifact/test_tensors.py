import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dmq_fx.artifact.tensors import load_metadata, load_tensors, narrow, opened_tensors, restore, save_tensors
from dmq_fx.errors import ArtifactError, InternalError


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    view = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(view), b.view(view))


@pytest.mark.parametrize(
    ("tensor", "stored"),
    [
        (torch.tensor([0.5, -1.0, 65504.0, 2.0**-24]), torch.float16),
        (torch.tensor([0.0, -0.0, torch.inf, -torch.inf]), torch.float16),
        (torch.tensor([0.0, torch.nan]), torch.float32),
        (torch.tensor([0.0, torch.nan], dtype=torch.float64), torch.float64),
        (torch.tensor([65536.0, 2.0**127]), torch.bfloat16),
        (torch.tensor([2.0**-25]), torch.bfloat16),
        (torch.tensor([0.1]), torch.float32),
        (torch.tensor([1.0 + 2**-10, 2.0**100]), torch.float32),
        (torch.tensor([0.1], dtype=torch.float64), torch.float64),
        (torch.tensor([0.1]).double(), torch.float32),
        (torch.tensor([0.1], dtype=torch.float16), torch.float16),
        (torch.tensor([-128, 127]), torch.int8),
        (torch.tensor([0, 255]), torch.uint8),
        (torch.tensor([-1, 255]), torch.int16),
        (torch.tensor([70000]), torch.int32),
        (torch.tensor([2**40]), torch.int64),
        (torch.tensor([3, 200], dtype=torch.int32), torch.uint8),
        (torch.tensor([True, False]), torch.bool),
        (torch.zeros(0, 3), torch.float16),
        (torch.tensor(1.5), torch.float16),
    ],
)
def test_narrow_picks_the_dtype_and_restore_undoes_it(tensor, stored):
    narrowed = narrow(tensor)
    assert narrowed.dtype == stored
    assert same_bits(restore(narrowed, tensor.dtype), tensor)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_narrow_keeps_every_float32_bit_pattern(words):
    tensor = torch.tensor([word - 2**31 for word in words], dtype=torch.int32).view(torch.float32)
    assert same_bits(restore(narrow(tensor), torch.float32), tensor)


def test_restore_refuses_what_narrow_never_stores():
    with pytest.raises(ArtifactError, match=r"stored as torch.float32 cannot be restored as torch.float16"):
        restore(torch.zeros(2), torch.float16)
    with pytest.raises(ArtifactError, match=r"stored as torch.int8 cannot be restored as torch.float32"):
        restore(torch.zeros(2, dtype=torch.int8), torch.float32)


def test_save_and_load_round_trip(tmp_path):
    base = torch.arange(12, dtype=torch.float32)
    tensors = {
        "b.weight": base.reshape(3, 4).t(),  # not contiguous
        "a": base,
        "a.view": base[:6],  # shares memory
        "a.parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5, dtype=torch.int8),
        "empty2": torch.zeros(0, dtype=torch.int8),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert list(loaded) == sorted(tensors)
    assert all(same_bits(loaded[name], tensors[name].detach().contiguous()) for name in tensors)
    assert load_metadata(tmp_path / "x.safetensors") == {}


@settings(max_examples=20)
@given(st.permutations(range(6)))
def test_same_input_same_bytes_whatever_the_order(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("bytes")
    dtypes = [torch.float32, torch.int8, torch.float16, torch.int64, torch.uint8, torch.float32]
    tensors = {f"t{i}": torch.arange(i + 1).to(dtypes[i]) for i in range(6)}
    metadata = {f"k{i}": [i, {"x": None}] for i in range(6)}
    save_tensors(folder / "one", tensors, metadata)
    save_tensors(
        folder / "two", {f"t{i}": tensors[f"t{i}"] for i in order}, {f"k{i}": metadata[f"k{i}"] for i in order}
    )
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    assert load_metadata(folder / "two") == metadata


def test_golden_digest(tmp_path):
    save_tensors(tmp_path / "x", {"b": torch.arange(3), "a": torch.tensor([1.5])}, {"z": 1, "a": "é"})
    digest = hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    assert digest == "43274fc91bb0db3d854ee7b15b85bc40a1eb13961c92b2d693f9997205575fae"


def test_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    save_tensors(tmp_path / "x", {"a": torch.zeros(1)})
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {"a": torch.ones(100)})
    loaded = load_tensors(path)
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert torch.equal(loaded["a"], torch.ones(100))


def test_tensors_are_read_when_they_are_asked_for(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {"b": torch.ones(100), "a": torch.zeros(2, 3)})
    with opened_tensors(path) as tensors:
        assert list(tensors) == ["a", "b"] and len(tensors) == 2 and "c" not in tensors and tensors.get("c") is None
        with pytest.raises(KeyError, match="c"):
            tensors["c"]
        first = tensors["b"]
        data = path.read_bytes()
        path.write_bytes(data[:-400] + torch.full((100,), 2.0).numpy().tobytes())
        assert torch.equal(first, torch.ones(100)) and torch.equal(tensors["b"], torch.full((100,), 2.0))
        path.write_bytes(data[:-40])
        with pytest.raises(ArtifactError, match="not a readable safetensors file"):
            tensors["b"]


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "junk", "longer"])
def test_damaged_files_are_artifact_errors(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.arange(100)}, {"k": 1})
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-5], "header": data[:20], "empty": b"", "junk": b"{" * 64, "longer": data + b"xx"}[damage]
    )
    for load in (load_tensors, load_metadata, lambda path: opened_tensors(path).__enter__()):
        with pytest.raises(ArtifactError, match="not a readable safetensors file") as error:
            load(path)
        assert error.value.where == str(path)
        assert "damaged or incomplete" in error.value.hint


def test_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_tensors(tmp_path / "none")
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_metadata(tmp_path / "none")


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_metadata_that_dmq_did_not_write(tmp_path, text):
    save_file({"a": torch.zeros(1)}, tmp_path / "x", metadata={"dmq": text})
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        load_metadata(tmp_path / "x")


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ArtifactError, match="cannot write the tensors"):
        save_tensors(tmp_path / "missing" / "x", {"a": torch.zeros(1)})
    with pytest.raises(InternalError, match="only dense tensors with data can be written, not 'a'"):
        save_tensors(tmp_path / "x", {"a": torch.zeros(1, device="meta")})
    with pytest.raises(InternalError, match=r"\$.k: .* is not JSON"):
        save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"k": object()})


def test_metadata_is_one_key_of_canonical_json(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.zeros(1)}, {"b": 1, "a": [True]})
    data = (tmp_path / "x").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == {"dmq": '{"a":[true],"b":1}'}
