import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dmq_fx.calibration.store import CalibrationCache, CalibrationSet, CalibrationWriter
from dmq_fx.errors import CalibrationError, InternalError

PROMPT = torch.arange(1000, dtype=torch.float32).reshape(2, 5, 100)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_batch(index: int, steps: int = 3) -> list[dict[str, torch.Tensor]]:
    """Latents and timesteps that differ at each step, and a prompt that does not."""
    return [
        {
            "sample": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(100 * index + step)),
            "timestep": torch.tensor(900 - 100 * step),
            "encoder_hidden_states": PROMPT.clone(),
        }
        for step in range(steps)
    ]


def capture(writer: CalibrationWriter, batches: int = 2) -> None:
    with writer:
        for index in range(batches):
            writer.add_batch(index, make_batch(index))


def assert_complete(found: CalibrationSet, batches: int = 2) -> None:
    seen = list(found)
    assert [(batch, step) for batch, step, _ in seen] == [(b, s) for b in range(batches) for s in range(3)]
    for batch, step, inputs in seen:
        expected = make_batch(batch)[step]
        assert inputs.keys() == expected.keys()
        for name, tensor in expected.items():
            assert inputs[name].dtype == tensor.dtype
            assert torch.equal(inputs[name], tensor)


@pytest.fixture
def cache(tmp_path):
    return CalibrationCache(tmp_path / "cache")


@pytest.fixture
def key(cache):
    return cache.key_of(model="abc", steps=3)


def test_round_trip(cache, key):
    writer = cache.writer(key, {"sampler": "ddim"})
    with writer:
        writer.add_batch(1, make_batch(1))  # in any order
        writer.add_batch(0, make_batch(0))
        writer.update_metadata(timesteps=[900, 800, 700])
    found = cache.get(key)
    assert found is not None
    assert (len(found), found.steps, found.timesteps) == (2, 3, (900, 800, 700))
    assert found.metadata == {"sampler": "ddim", "timesteps": [900, 800, 700]}
    assert found.bytes == sum(file.stat().st_size for file in found.path.glob("*.safetensors"))
    assert_complete(found)
    assert_complete(CalibrationSet.open(writer.path, verify=False))
    assert names(cache.root) == [key]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_any_dtype_shape_and_bits(tmp_path):
    tensors = {
        "nan": torch.tensor([torch.nan, -0.0]),
        "zero": torch.tensor([torch.nan, 0.0]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "same bits, other dtype": torch.ones(3, dtype=torch.bfloat16).view(torch.float16),
        "other shape": torch.ones(3, 1, dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True]),
        "view": torch.arange(6).reshape(2, 3).t(),
    }
    with CalibrationWriter(tmp_path / "set") as writer:
        writer.add_batch(0, [tensors, {}])
    (_, _, first), (_, _, second) = CalibrationSet.open(tmp_path / "set")
    assert second == {}
    for name, tensor in tensors.items():
        assert first[name].dtype == tensor.dtype
        assert first[name].shape == tensor.shape
        assert torch.equal(bits_of(first[name]), bits_of(tensor))
    assert CalibrationSet.open(tmp_path / "set").timesteps == ()


def test_equal_tensors_are_stored_once(tmp_path):
    for name, steps in (("few", 1), ("many", 30)):
        with CalibrationWriter(tmp_path / name) as writer:
            writer.add_batch(0, [{"prompt": PROMPT.clone(), "t": torch.tensor(step)} for step in range(steps)])
    few, many = CalibrationSet.open(tmp_path / "few"), CalibrationSet.open(tmp_path / "many")
    assert many.bytes - few.bytes < PROMPT.nbytes * 2
    assert all(torch.equal(inputs["prompt"], PROMPT) for _, _, inputs in many)


def test_same_inputs_same_bytes(tmp_path):
    for name in ("one", "two"):
        capture(CalibrationWriter(tmp_path / name, {"b": 1, "a": 2}))
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_only_one_batch_is_in_memory(tmp_path, monkeypatch):
    capture(CalibrationWriter(tmp_path / "set"), batches=3)
    found, opened = CalibrationSet.open(tmp_path / "set"), []
    read = CalibrationSet.batch
    monkeypatch.setattr(CalibrationSet, "batch", lambda self, index: opened.append(index) or read(self, index))
    stream = iter(found)
    assert opened == []
    for _ in range(4):
        next(stream)
    assert opened == [0, 1]


def test_a_set_has_the_same_steps_in_every_batch(tmp_path):
    with CalibrationWriter(tmp_path / "set") as writer:
        writer.add_batch(0, make_batch(0))
        with pytest.raises(CalibrationError, match="batch 1 has 2 sampler steps, expected 3"):
            writer.add_batch(1, make_batch(1, steps=2))
        with pytest.raises(InternalError, match="calibration batch 0 is negative or was added before"):
            writer.add_batch(0, make_batch(0))
    with pytest.raises(CalibrationError, match="has 0 sampler steps, expected at least one"):
        CalibrationWriter(tmp_path / "other").add_batch(0, [])


def test_incomplete_captures_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="no batch was captured"), CalibrationWriter(tmp_path / "set"):
        pass
    with (
        pytest.raises(CalibrationError, match="batch 1 was not captured"),
        CalibrationWriter(tmp_path / "set") as writer,
    ):
        writer.add_batch(0, make_batch(0))
        writer.add_batch(2, make_batch(2))
    with pytest.raises(InternalError, match=r"timesteps must be 3 numbers, got \[1, 2\]"):
        capture(CalibrationWriter(tmp_path / "set", {"timesteps": [1, 2]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_capture_leaves_nothing(cache, key, error):
    with pytest.raises(error), cache.writer(key) as writer:
        writer.add_batch(0, make_batch(0))
        raise error
    assert cache.get(key) is None
    assert list(cache.root.iterdir()) == []


def test_a_killed_capture_is_no_set_and_is_cleared_after_a_day(cache, key):
    writer = cache.writer(key).__enter__()
    writer.add_batch(0, make_batch(0))  # and never finished
    assert cache.get(key) is None
    (partial,) = cache.root.iterdir()
    cache.evict()
    assert partial.exists()
    os.utime(partial, (time.time() - 90_000,) * 2)
    cache.evict()
    assert not partial.exists()


def test_an_unwritable_folder_is_a_calibration_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CalibrationError, match="cannot write the calibration set") as error:
        CalibrationWriter(tmp_path / "file" / "set").__enter__()
    assert "choose another cache folder" in error.value.hint
    with pytest.raises(CalibrationError, match="cannot write the calibration set"):
        CalibrationWriter(tmp_path / "never entered").add_batch(0, make_batch(0))


def edit_index(path: Path, **changes) -> None:
    index = json.loads((path / "calibration.json").read_text())
    (path / "calibration.json").write_text(json.dumps(index | changes))


def flip_last_byte(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "calibration.json").unlink(), "it has no calibration.json"),
        (lambda path: (path / "calibration.json").write_text("{"), "calibration.json cannot be read"),
        (lambda path: (path / "calibration.json").write_text("[]"), "calibration.json cannot be read"),
        (lambda path: edit_index(path, format=9), "its format is 9, not 1"),
        (lambda path: edit_index(path, batches=[]), "calibration.json is not an index"),
        (lambda path: edit_index(path, batches=[{"name": "../x", "size": 1, "sha256": ""}]), "cannot be the name"),
        (lambda path: edit_index(path, batches=[{"name": "x"}]), "calibration.json cannot be read"),
        (lambda path: (path / "batch-000001.safetensors").unlink(), "batch-000001.safetensors is missing"),
        (lambda path: (path / "batch-000001.safetensors").write_bytes(b"x"), "is missing or not"),
        (lambda path: flip_last_byte(path / "batch-000001.safetensors"), "was changed after it was written"),
    ],
)
def test_a_damaged_set_is_a_miss_and_is_captured_again(cache, key, damage, message):
    capture(cache.writer(key))
    damage(cache.root / key)
    with pytest.raises(CalibrationError, match=re.escape(message)):
        CalibrationSet.open(cache.root / key)
    with pytest.warns(UserWarning, match="captured again: "):
        assert cache.get(key) is None
    assert list(cache.root.iterdir()) == []
    capture(cache.writer(key))
    assert_complete(cache.get(key))


def test_damage_after_opening_is_named(tmp_path):
    capture(CalibrationWriter(tmp_path / "set"))
    found = CalibrationSet.open(tmp_path / "set")
    (tmp_path / "set/batch-000001.safetensors").write_bytes(b"x")
    with pytest.raises(CalibrationError, match=r"batch-000001\.safetensors cannot be read"):
        list(found)


def test_a_writer_replaces_a_damaged_set(cache, key):
    with cache.writer(key) as writer:
        capture(cache.writer(key))
        (cache.root / key / "calibration.json").unlink()
        for index in range(2):
            writer.add_batch(index, make_batch(index))
    assert_complete(cache.get(key))
    assert names(cache.root) == [key]


def test_the_slower_writer_discards_its_copy(cache, key):
    with cache.writer(key, {"by": "slow"}) as writer:
        writer.add_batch(0, make_batch(0))
        capture(cache.writer(key, {"by": "fast"}))
    assert cache.get(key).metadata == {"by": "fast"}
    assert names(cache.root) == [key]


WRITE_AT_ONCE = """
import sys, pathlib, torch
from dmq_fx.calibration.store import CalibrationCache
with CalibrationCache(pathlib.Path(sys.argv[1])).writer(sys.argv[2], {"by": "child"}) as writer:
    writer.add_batch(0, [{"x": torch.arange(10)}])
    print("ready", flush=True)
    sys.stdin.readline()
"""


def test_two_processes_write_the_same_key(cache, key):
    command = [sys.executable, "-c", WRITE_AT_ONCE, str(cache.root), key]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
        cache.writer(key, {"by": "parent"}) as writer,
    ):
        writer.add_batch(0, [{"x": torch.arange(10)}])
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("go\n")
        child.stdin.flush()  # now both finish at once
    assert child.returncode == 0
    found = cache.get(key)
    assert found.metadata["by"] in ("child", "parent")
    assert [inputs["x"].tolist() for _, _, inputs in found] == [list(range(10))]
    assert names(cache.root) == [key]


def fill(cache: CalibrationCache, count: int) -> list[str]:
    """Sets of the same size, the first one used the longest ago."""
    keys = [cache.key_of(set=i) for i in range(count)]
    for i, key in enumerate(keys):
        capture(cache.writer(key))
        os.utime(cache.root / key / "last_used", (1000 + i, 1000 + i))
    return keys


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_the_least_recently_used_sets_are_removed(cache):
    keys = fill(cache, 4)
    assert cache.evict() == []
    cache.get(keys[0])  # now the most recent one
    cache.limit_bytes = 2 * folder_bytes(cache.root / keys[0])
    assert cache.evict() == [keys[1], keys[2]]
    assert names(cache.root) == sorted([keys[0], keys[3]])


def test_reading_counts_as_use(cache):
    keys = fill(cache, 2)
    next(iter(CalibrationSet.open(cache.root / keys[0])))
    cache.limit_bytes = folder_bytes(cache.root / keys[0])
    assert cache.evict() == [keys[1]]


def test_named_sets_are_kept(cache):
    keys = fill(cache, 3)
    cache.limit_bytes = folder_bytes(cache.root / keys[0])
    assert cache.evict(keep=[keys[0]]) == [keys[1], keys[2]]


def test_a_new_set_makes_room_for_itself(cache):
    keys = fill(cache, 2)
    cache.limit_bytes = 2 * folder_bytes(cache.root / keys[0])
    new = cache.key_of(set="new")
    capture(cache.writer(new))
    assert names(cache.root) == sorted([keys[1], new])


def test_a_set_over_the_limit_is_used_and_then_not_kept(cache):
    (small,) = fill(cache, 1)
    cache.limit_bytes = folder_bytes(cache.root / small)
    large = cache.key_of(set="large")
    writer = cache.writer(large)
    capture(writer, batches=4)
    assert_complete(CalibrationSet.open(writer.path), batches=4)
    assert cache.evict(keep=[large]) == []  # nor does it drive out others
    assert cache.evict() == [large]
    assert names(cache.root) == [small]


def test_eviction_touches_nothing_else(cache):
    fill(cache, 1)
    (cache.root / "notes").mkdir()
    (cache.root / "notes/mine.txt").write_text("x")
    cache.limit_bytes = 0
    assert len(cache.evict()) == 1
    assert names(cache.root) == ["notes"]
    assert CalibrationCache(cache.root / "none").evict() == []


def test_keys(cache):
    assert cache.key_of(a=1, b=[2]) == cache.key_of(b=(2,), a=1)
    assert len({cache.key_of(a=1), cache.key_of(a=2), cache.key_of(a="1"), cache.key_of(b=1)}) == 4
    with pytest.raises(InternalError, match="is not JSON"):
        cache.key_of(a=Path("x"))
    with pytest.raises(InternalError, match=r"made by key_of, got '\.\./x'"):
        cache.get("../x")


def test_the_default_root_is_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, **_: tmp_path / name)
    assert CalibrationCache().root == tmp_path / "dmq" / "calibration"
    assert not (tmp_path / "dmq").exists()
