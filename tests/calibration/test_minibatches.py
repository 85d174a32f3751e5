"""Minibatches: rows of a calibration set at random, read one by one."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from dmq_fx.calibration.minibatches import Minibatches, Pick
from dmq_fx.calibration.store import CalibrationSet, CalibrationWriter
from dmq_fx.errors import CalibrationError, InternalError
from dmq_fx.tracing import TracedInput, TracedModel

STEPS = 5
ROWS = (4, 4, 3)
"""Rows of each batch file; the last one is smaller."""

CPU = torch.device("cpu")
POSITIONS = torch.arange(6.0).reshape(3, 2)
SCALE = torch.tensor(0.5)


def entry(path: str, *dims: int | None, batched: bool = True, dtype: torch.dtype = torch.float32) -> TracedInput:
    return TracedInput(path, tuple(path.split(".")), path.replace(".", "_"), dims, dtype, batched)


def traced_model(*, batched_timestep: bool = True) -> TracedModel:
    """Inputs of a denoiser, in another order than their names'; the graph itself is not needed."""
    inputs = (
        entry("timestep", None, dtype=torch.int64, batched=batched_timestep),
        entry("sample", None, 2, 3),
        entry("cond.prompt", None, 4, dtype=torch.bfloat16),
        entry("positions", 3, 2, batched=False),
        entry("scale", batched=False),
    )
    module = fx.GraphModule(torch.nn.Module(), fx.Graph())
    return TracedModel(module, inputs, {}, "timestep", inspect.Signature(), "Tiny", {}, (), False)


def row_value(file: int, step: int, row: int) -> float:
    return 100.0 * file + 10.0 * step + row


def step_inputs(file: int, step: int, rows: int) -> dict[str, Tensor]:
    """Every row of the sample says where it is from; prompts are the same bits at every step of a file."""
    values = torch.tensor([row_value(file, step, row) for row in range(rows)])
    return {
        "sample": values[:, None, None] + torch.linspace(0, 0.5, 6).reshape(2, 3),
        "timestep": torch.full((rows,), 900 - 100 * step),
        "cond.prompt": torch.arange(rows * 4, dtype=torch.bfloat16).reshape(rows, 4) + 64 * file,
        "positions": POSITIONS,
        "scale": SCALE,
        "not of the graph": torch.zeros(rows),
    }


@pytest.fixture
def inputs(tmp_path: Path) -> CalibrationSet:
    with CalibrationWriter(tmp_path / "set") as writer:
        for file, rows in enumerate(ROWS):
            writer.add_batch(file, [step_inputs(file, step, rows) for step in range(STEPS)])
    return CalibrationSet.open(tmp_path / "set")


@pytest.fixture
def minibatches(inputs: CalibrationSet) -> Minibatches:
    return Minibatches(traced_model(), inputs, batch=8, seed=3, device=CPU)


def origins(arguments: tuple[Tensor, ...]) -> list[Pick]:
    """Where the rows of a minibatch are from, read off their values."""
    values = arguments[1][:, 0, 0].int().tolist()
    return [(value // 100, value // 10 % 10, value % 10) for value in values]


def equal(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_row_counts_and_the_last_file_is_smaller(minibatches: Minibatches) -> None:
    assert minibatches.rows == sum(ROWS) * STEPS


def test_rows_are_those_of_the_files(inputs: CalibrationSet, minibatches: Minibatches) -> None:
    expected: list[list[Tensor]] = [[], [], []]
    picks: list[Pick] = []
    for file, step, tensors in inputs:
        for row in range(ROWS[file]):
            picks.append((file, step, row))
            for rows, path in zip(expected, ("timestep", "sample", "cond.prompt"), strict=True):
                rows.append(tensors[path][row : row + 1])
    order = torch.randperm(len(picks), generator=torch.Generator().manual_seed(0)).tolist()
    arguments = minibatches.take([picks[place] for place in order])
    wanted = [torch.cat([rows[place] for place in order]) for rows in expected]
    assert equal(arguments, (*wanted, POSITIONS, SCALE))
    assert [argument.dtype for argument in arguments] == [e.dtype for e in traced_model().inputs]


def test_one_row_keeps_its_dimension(minibatches: Minibatches) -> None:
    timestep, sample, prompt, positions, scale = minibatches.take([(2, 4, 2)])
    assert (timestep.tolist(), sample.shape, prompt.shape) == ([500], (1, 2, 3), (1, 4))
    assert origins((timestep, sample)) == [(2, 4, 2)]
    assert torch.equal(positions, POSITIONS) and torch.equal(scale, SCALE)


def test_a_draw_depends_on_seed_and_iteration_alone(inputs: CalibrationSet, minibatches: Minibatches) -> None:
    first = minibatches.draw(7)
    for iteration in (0, 8, 7, 3):
        minibatches.draw(iteration)
    assert equal(minibatches.draw(7), first)
    again = Minibatches(traced_model(), inputs, batch=8, seed=3, device=CPU)
    assert equal(again.draw(7), first)
    other = Minibatches(traced_model(), inputs, batch=8, seed=4, device=CPU)
    drawn = [origins(minibatches.draw(iteration)) for iteration in range(20)]
    assert len({tuple(rows) for rows in drawn}) == 20
    assert not any(origins(other.draw(iteration)) == rows for iteration, rows in enumerate(drawn))


def test_the_random_state_of_the_process_is_left_alone(minibatches: Minibatches) -> None:
    before = torch.get_rng_state()
    minibatches.draw(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_timesteps_are_mixed_and_every_row_has_its_own(minibatches: Minibatches) -> None:
    mixed = 0
    for iteration in range(20):
        arguments = minibatches.draw(iteration)
        assert [len(argument) for argument in arguments[:4]] == [8, 8, 8, 3]
        assert arguments[0].tolist() == [900 - 100 * step for _, step, _ in origins(arguments)]
        mixed += len(set(arguments[0].tolist())) > 1
    assert mixed == 20


def test_draws_are_uniform_over_rows(inputs: CalibrationSet) -> None:
    """Rows of the smaller file are as likely as others: chi-square of 55 cells, 99.9 % quantile of 54 degrees."""
    many = Minibatches(traced_model(), inputs, batch=550, seed=0, device=CPU)
    counts = Counter(pick for iteration in range(10) for pick in origins(many.draw(iteration)))
    assert len(counts) == many.rows == 55
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 91.9


def test_a_timestep_that_does_not_follow_the_batch_is_not_mixed(inputs: CalibrationSet) -> None:
    fixed = Minibatches(traced_model(batched_timestep=False), inputs, batch=8, seed=3, device=CPU)
    steps = set()
    for iteration in range(20):
        arguments = fixed.draw(iteration)
        ((file, step),) = {pick[:2] for pick in origins(arguments)}
        assert set(arguments[0].tolist()) == {900 - 100 * step}
        steps.add((file, step))
    assert len(steps) > 5
    with pytest.raises(InternalError, match="the timestep does not follow the batch"):
        fixed.take([(0, 0, 0), (0, 1, 0)])


@pytest.mark.parametrize("count", [1, 3, 5, 7, 11, 12, 23, 54, 55])
def test_spread_covers_samples_and_steps_evenly(minibatches: Minibatches, count: int) -> None:
    picks = minibatches.spread(count)
    assert len(set(picks)) == len(picks) == count
    assert picks == minibatches.spread(count)
    assert origins(minibatches.take(picks)) == picks  # and so all of them are there
    for part, total in ((lambda p: (p[0], p[2]), sum(ROWS)), (lambda p: p[1], STEPS)):
        counts = Counter(part(pick) for pick in picks)
        assert len(counts) == min(count, total)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert [pick[0] for pick in picks] == sorted(pick[0] for pick in picks)


def test_spread_gives_what_there_is(minibatches: Minibatches) -> None:
    assert set(minibatches.spread(1000)) == {(f, s, r) for f in range(3) for s in range(STEPS) for r in range(ROWS[f])}


def test_steps_may_have_different_numbers_of_rows(tmp_path: Path) -> None:
    """Guidance that is on at some steps only doubles their rows."""
    with CalibrationWriter(tmp_path / "set") as writer:
        writer.add_batch(0, [step_inputs(0, 0, 4), step_inputs(0, 1, 2)])
        writer.add_batch(1, [step_inputs(1, 0, 2), step_inputs(1, 1, 1)])
    inputs = CalibrationSet.open(tmp_path / "set")
    made = Minibatches(traced_model(), inputs, batch=200, seed=0, device=CPU)
    assert made.rows == 9
    there = {(0, 0, row) for row in range(4)} | {(0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)}
    assert set(origins(made.draw(0))) == there
    assert set(made.spread(9)) == {(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)}


def test_only_the_rows_are_read(
    inputs: CalibrationSet, minibatches: Minibatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is read whole, one is open at a time and none afterwards, and results are memory of their own."""
    picks = [(2, 0, 1), (0, 3, 2), (2, 1, 0), (0, 0, 0)]
    opens: list[str] = []
    read = CalibrationSet.opened

    def opened(self: CalibrationSet, index: int):
        opens.append(str(index))
        return read(self, index)

    monkeypatch.setattr(CalibrationSet, "opened", opened)
    monkeypatch.setattr(CalibrationSet, "batch", lambda *args: pytest.fail("a whole batch was read"))
    arguments = minibatches.take(picks)
    assert opens == ["0", "2"]
    assert [argument.untyped_storage().nbytes() for argument in arguments] == [4 * 8, 4 * 24, 4 * 8, 24, 4]
    for record in inputs.batches:
        (inputs.path / record.name).unlink()
    assert origins(arguments) == picks


def test_errors_name_what_is_missing(inputs: CalibrationSet, minibatches: Minibatches) -> None:
    model = traced_model()
    with pytest.raises(InternalError, match=r"there is no row \(2, 0, 3\) in the calibration set"):
        minibatches.take([(0, 0, 0), (2, 0, 3)])
    with pytest.raises(InternalError, match="a minibatch has at least one row"):
        minibatches.take([])
    with pytest.raises(InternalError, match="a minibatch has at least one row, got 0"):
        Minibatches(model, inputs, batch=0, seed=0, device=CPU)
    other = TracedModel(**{**vars(model), "inputs": (*model.inputs, entry("class_labels", None))})
    with pytest.raises(CalibrationError, match="the calibration inputs have no 'class_labels'") as caught:
        Minibatches(other, inputs, batch=1, seed=0, device=CPU).draw(0)
    assert (
        caught.value.hint is not None and "cond.prompt, not of the graph, positions, sample, scale" in caught.value.hint
    )
    (inputs.path / "batch-000001.safetensors").write_bytes(b"x")
    with pytest.raises(CalibrationError, match=r"damaged: batch-000001\.safetensors cannot be read"):
        minibatches.take([(1, 0, 0)])
