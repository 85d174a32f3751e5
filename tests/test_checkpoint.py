"""Checkpoints: what is kept, when it is written, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dmq_fx
from dmq_fx.calibration.store import CalibrationCache
from dmq_fx.checkpoint import Checkpoint, checkpoint_folder, has_checkpoint
from dmq_fx.errors import ArtifactError, InternalError
from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.program import PassContext, Program

KEY = {"recipe": "a" * 64, "model": "b" * 64, "version": {"torch": "2.13.0", "dmq-fx": "0.1.0"}}
FACTS = {"iteration": 3, "losses": [0.5, 0.25], "site": "conv_in"}


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    gamma = torch.full((3, 4), value)
    return {"gamma": gamma, "half": gamma.t().to(torch.bfloat16), "step": torch.tensor(7), "mask": gamma > 0}


def opened(output: Path, *, resume: bool = True, key: Mapping[str, Any] = KEY, **options: Any) -> Checkpoint:
    checkpoint = Checkpoint(output, resume=resume, **options)
    checkpoint.require(**key)
    return checkpoint


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@pytest.fixture
def saved(output: Path) -> Path:
    """The file of a section that was saved."""
    opened(output, resume=False).section("00-les").save(tensors(), FACTS, force=True)
    return checkpoint_folder(output) / "00-les.safetensors"


def same(found: tuple[dict[str, Tensor], dict[str, Any]] | None, expected: Mapping[str, Tensor]) -> bool:
    assert found is not None
    assert found[0].keys() == expected.keys()
    return all(found[0][name].dtype == t.dtype and torch.equal(found[0][name], t) for name, t in expected.items())


def test_what_was_saved_is_loaded(saved: Path, output: Path) -> None:
    checkpoint = opened(output)
    found = checkpoint.section("00-les").load()
    assert same(found, tensors())
    assert found is not None and found[1] == FACTS
    assert checkpoint.section("01-adaround").load() is None
    assert [file.name for file in saved.parent.iterdir()] == ["00-les.safetensors"]


def test_nothing_is_written_before_something_is_saved(output: Path) -> None:
    checkpoint = opened(output, resume=False)
    assert checkpoint.section("00-les").load() is None
    assert not output.parent.exists()
    assert not has_checkpoint(output)
    checkpoint.section("00-les").save(tensors(), FACTS, force=True)
    assert has_checkpoint(output)
    assert checkpoint.folder == output.parent / ".out.checkpoint"


def test_saves_are_as_far_apart_as_the_interval(output: Path) -> None:
    clock = Clock()
    checkpoint = opened(output, resume=False, clock=clock)
    first, second = checkpoint.section("00-les"), checkpoint.section("01-adaround")
    made: list[float] = []

    def state() -> dict[str, Tensor]:
        made.append(clock.now)
        return tensors(clock.now)

    written = {now: False for now in (1000.0, 1059.9, 1060.0, 1100.0, 1119.9, 1120.0)}
    for clock.now in written:
        written[clock.now] = first.save(state, FACTS)
    assert [now for now, done in written.items() if done] == made == [1060.0, 1120.0]
    assert not second.save(state, FACTS)  # the interval is the compile's, not the section's
    assert second.save(state, FACTS, force=True)
    clock.now = 1179.0
    assert not first.save(state, FACTS)
    assert same(first.load(), tensors(1120.0))


def test_a_new_compile_discards_what_an_earlier_one_left(saved: Path, output: Path) -> None:
    checkpoint = opened(output, resume=False, key={"recipe": "c" * 64})
    assert checkpoint.section("00-les").load() is None
    assert not saved.parent.exists()


def test_removing_leaves_the_files_of_others(saved: Path, output: Path) -> None:
    (saved.parent / "mine.txt").write_text("x")
    opened(output).remove()
    assert [file.name for file in saved.parent.iterdir()] == ["mine.txt"]
    assert not has_checkpoint(output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "c" * 64}, "of another compile: recipe is aaaaaaaaaaaa, now cccccccccccc\n"),
        ({"model": "c" * 64}, "of another compile: model is bbbbbbbbbbbb, now cccccccccccc\n"),
        ({"version": {"torch": "2.14.0", "dmq-fx": "0.1.0"}}, "compile: version of torch is 2.13.0, now 2.14.0\n"),
        ({"recipe": "c" * 64, "model": "d" * 64}, "is aaaaaaaaaaaa, now cccccccccccc, model is bbbbbbbbbbbb, now"),
        ({"calibration": "e" * 64}, "of another compile: calibration is None, now eeeeeeeeeeee\n"),
    ],
)
def test_a_checkpoint_of_another_compile_is_refused(
    saved: Path, output: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        opened(output, key=KEY | changes)
    assert caught.value.where == str(saved.parent)
    assert caught.value.hint is not None and caught.value.hint.startswith("leave out --resume to start again")
    assert saved.exists()


def test_parts_of_the_key_may_come_later(output: Path) -> None:
    first = opened(output, resume=False)
    first.require(calibration="e" * 64)
    first.section("00-les").save(tensors(), FACTS, force=True)
    again = opened(output)
    with pytest.raises(ArtifactError, match="calibration is eeeeeeeeeeee, now ffffffffffff"):
        again.require(calibration="f" * 64)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flip_last_byte(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_last_byte, empty])
def test_a_damaged_file_is_an_error(saved: Path, output: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(ArtifactError, match="the checkpoint is damaged: ") as caught:
        opened(output).section("00-les").load()
    assert (caught.value.where, caught.value.hint) == (
        str(saved),
        "leave out --resume to start again from the beginning",
    )
    assert opened(output, resume=False).section("00-les").load() is None


def test_a_file_that_dmq_did_not_write_is_damaged(saved: Path, output: Path) -> None:
    from dmq_fx.artifact.tensors import save_tensors

    save_tensors(saved, tensors(), {"format": 9})
    with pytest.raises(ArtifactError, match="the checkpoint is damaged: it is not of format 1"):
        opened(output)


def test_what_a_kill_leaves_of_a_write_is_ignored(saved: Path, output: Path) -> None:
    (saved.parent / ".00-les.safetensors.partial-0123456789abcdef").write_bytes(saved.read_bytes()[:100])
    checkpoint = opened(output)
    assert same(checkpoint.section("00-les").load(), tensors())
    checkpoint.remove()
    assert not saved.parent.exists()


def test_a_write_that_fails_leaves_the_old_file(saved: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = opened(output).section("00-les")

    def full(path: Path, *args: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("dmq_fx.checkpoint.save_tensors", full)
    with pytest.raises(ArtifactError, match="cannot write the checkpoint: No space left on device"):
        section.save(tensors(2.0), FACTS, force=True)
    assert same(section.load(), tensors())
    assert [file.name for file in saved.parent.iterdir()] == ["00-les.safetensors"]


def test_facts_are_json_and_names_are_names(output: Path) -> None:
    checkpoint = opened(output, resume=False)
    with pytest.raises(InternalError, match="nan of type float is not JSON"):
        checkpoint.section("00-les").save(tensors(), {"loss": float("nan")}, force=True)
    with pytest.raises(InternalError, match=r"'00-\.\./x' cannot be the name of a section"):
        checkpoint.section("00-../x")


@dataclass(frozen=True)
class Nothing:
    """No options."""


class Stoppable:
    """A pass that counts to three in a checkpoint, and is interrupted at two the first time."""

    Options = Nothing
    requires = frozenset({"traced"})
    ensures = frozenset[str]()

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.contexts: list[PassContext] = []

    def run(self, program: Program, options: Any, context: PassContext) -> PassResult:
        self.contexts.append(context)
        assert context.checkpoint is not None
        found = context.checkpoint.load()
        self.starts.append(int(found[0]["count"]) if found else 0)
        for count in range(self.starts[-1], 3):
            if count == 2 and len(self.starts) == 1:
                raise KeyboardInterrupt
            context.checkpoint.save({"count": torch.tensor(count + 1)}, {}, force=True)
        return PassResult(())


@pytest.fixture
def stoppable() -> Iterator[Stoppable]:
    entry = Stoppable()
    PASSES.register("stoppable")(entry)
    yield entry
    del PASSES._entries["stoppable"]


def test_an_interrupted_compile_is_gone_on_with(
    tmp_path: Path, pipeline_folder: Path, fast: tuple[str, ...], cache: CalibrationCache, stoppable: Stoppable
) -> None:
    recipe, output = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("dmq: 1\nname: test/r\nextends: ptq/w8a8\npasses: [stoppable]\n")
    options: dict[str, Any] = {"model": str(pipeline_folder), "output": output, "cache": cache}
    with pytest.raises(KeyboardInterrupt):
        dmq_fx.compile(recipe, overrides=fast, **options)
    assert [file.name for file in checkpoint_folder(output).iterdir()] == ["00-stoppable.safetensors"]
    with pytest.raises(ArtifactError, match="the checkpoint is of another compile: recipe is "):
        dmq_fx.compile(recipe, overrides=(*fast, "budget=quick"), resume=True, **options)
    dmq_fx.compile(recipe, overrides=fast, resume=True, **options)
    assert stoppable.starts == [0, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "r.yaml"]
    dmq_fx.compile(recipe, overrides=(*fast, "budget=quick"), force=True, **options)
    assert stoppable.starts == [0, 2, 0]
    assert [context.budget for context in stoppable.contexts] == ["standard", "standard", "quick"]
