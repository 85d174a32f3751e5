"""One timestep a call: batches of several are computed timestep by timestep, and what a timestep gives is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    SIZE,
    STATIC,
    W4,
    W8,
    converted,
    grouped,
    inputs,
    lower,
    needs_vnni,
    scale_channels,
    seeded,
    traced,
)
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.lowering import module as module_file
from dmq_fx.lowering.module import LoweredModule
from dmq_fx.lowering.time_part import TimePart, reads_timestep, split_time_part
from dmq_fx.recipe.language import ActivationSpec
from dmq_fx.tracing import TracedModel, trace

pytestmark = needs_vnni
MIXED = [900, 100, 500, 100, 77]


class Conditioned(nn.Module):
    """Takes an embedding of the timestep, a condition for each sample, and positions that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, CHANNELS)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        emb = self.time(timestep[:, None] / 1000) + condition
        h = self.conv(sample + emb[:, :, None, None] + positions)
        return h, h.mean((2, 3))


@pytest.fixture(scope="module")
def model() -> TracedModel:
    given = {
        "sample": torch.zeros(2, CHANNELS, SIZE, SIZE),
        "timestep": torch.tensor([1, 2]),
        "condition": torch.zeros(2, CHANNELS),
        "positions": torch.zeros(SIZE, SIZE),
    }
    return trace(seeded(Conditioned()), given)


@pytest.fixture(scope="module")
def parts(model: TracedModel) -> TimePart:
    program = grouped(model, lambda site: (W4, BY_TIMESTEP) if site.name == "conv" else (None, None))
    scale_channels(program, shifts=3)
    return split_time_part(lower(converted(program)).lowered.graph_module, model)


def call(timesteps: list[int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(len(timesteps), CHANNELS, generator=generator)
    positions = torch.randn(SIZE, SIZE, generator=generator)
    return inputs(1, len(timesteps))[0], torch.tensor(timesteps), condition, positions


def test_samples_of_several_timesteps_are_those_run_alone(model: TracedModel, parts: TimePart) -> None:
    lowered = LoweredModule(model, parts.body, parts.time)
    x, t, condition, positions = call(MIXED)
    mixed = lowered(x, t, condition, positions)
    assert [tuple(part.shape) for part in mixed] == [(5, CHANNELS, SIZE, SIZE), (5, CHANNELS)]
    for row in range(len(MIXED)):
        one = slice(row, row + 1)
        alone = lowered(x[one], t[one], condition[one], positions)
        for found, expected in zip(mixed, alone, strict=True):
            torch.testing.assert_close(found[one], expected, rtol=1e-5, atol=1e-6)
    together = lowered(x, torch.full_like(t, 100), condition, positions)
    torch.testing.assert_close(mixed[0][[1, 3]], together[0][[1, 3]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[0][0], together[0][0], rtol=1e-2, atol=1e-2)


def test_a_timestep_is_computed_once(model: TracedModel, parts: TimePart) -> None:
    asked: list[float] = []

    def time(timestep: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(float(timestep))
        assert timestep.shape == (1,)
        assert parts.time is not None
        return parts.time(timestep)

    lowered = LoweredModule(model, parts.body, time)
    for timesteps in ([900, 900], MIXED, [77], MIXED):
        lowered(*call(timesteps))
    assert sorted(asked) == [77.0, 100.0, 500.0, 900.0]


def test_what_is_known_is_not_computed(model: TracedModel, parts: TimePart) -> None:
    assert parts.time is not None
    known = {float(t): parts.time(torch.tensor([t])) for t in set(MIXED)}
    expected = LoweredModule(model, parts.body, parts.time)(*call(MIXED))

    def never(timestep: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"{timestep} is known")

    lowered = LoweredModule(model, parts.body, never, known)
    for found, wanted in zip(lowered(*call(MIXED)), expected, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(AssertionError, match="is known"):
        lowered(*call([3, 3]))


def test_number_of_kept_timesteps_is_bounded(
    model: TracedModel, parts: TimePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "REMEMBERED", 4)
    asked: list[float] = []

    def time(timestep: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(float(timestep))
        return torch.empty(0), torch.empty(0, dtype=torch.int64)

    lowered = LoweredModule(model, parts.body, time)
    for timestep in [0, 1, 2, 3, 0, 4, 0, 5, 6, 0, 1]:  # the one that was used last stays longest
        lowered.of_timestep(torch.tensor([timestep]))
        assert len(lowered._known) <= 4
    assert asked == [0, 1, 2, 3, 4, 5, 6, 1]


def test_fractional_timesteps(model: TracedModel, parts: TimePart) -> None:
    lowered = LoweredModule(model, parts.body, parts.time, reads_timestep=reads_timestep(parts.body, model))
    x, _, condition, positions = call([1, 1])
    found = [lowered(x, torch.full((2,), t), condition, positions)[0] for t in (100.0, 249.5)]
    assert torch.equal(found[0], lowered(x, torch.tensor([100, 100]), condition, positions)[0])
    assert not torch.equal(found[0], found[1])
    floats = [lowered.of_timestep(torch.tensor([t]))[0] for t in (249, 249.5, 250)]
    assert not torch.equal(floats[0], floats[1]) and not torch.equal(floats[1], floats[2])


class Scaled(nn.Module):
    """A sample times a function of the timestep that is not computed in float32."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.of = of

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.conv(sample * self.of(timestep).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("of", [lambda t: t * 2, lambda t: t.to(torch.float16) / 8], ids=["integers", "half precision"])
def test_fractional_timesteps_of_a_graph_of_integers(of: Callable[[Tensor], Tensor]) -> None:
    """What the body is compiled for is what it is handed, and the fraction is not lost; else an error says so."""
    scaled = traced(Scaled(of))
    program = converted(grouped(scaled, (W8, BY_TIMESTEP)))
    parts = split_time_part(lower(program).lowered.graph_module, scaled)
    handed: list[list[torch.dtype]] = []

    def body(*given: Tensor) -> tuple[Tensor, ...]:
        handed.append([x.dtype for x in given])
        return parts.body(*given)

    lowered = LoweredModule(scaled, body, parts.time, reads_timestep=reads_timestep(parts.body, scaled))
    for timestep in (12, 12.5):
        with torch.no_grad():
            expected = program.graph_module(*inputs(timestep))[0]
        try:
            found = lowered(*inputs(timestep))[0]
        except BackendError as refused:
            assert timestep == 12.5 and "12.5" in str(refused)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert handed[1:] in ([], handed[:1])


class Repeated(nn.Module):
    """The timestep repeated over rows of an image before anything is made of it: no value of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        rows = (timestep.repeat_interleave(SIZE, dim=0).float() / 100).sin()
        y = self.conv(sample).transpose(1, 2).flatten(0, 1) * rows[:, None, None]
        return y.unflatten(0, (-1, SIZE)).transpose(1, 2)


@pytest.mark.parametrize("activation", [STATIC, BY_TIMESTEP], ids=["static", "by timestep"])
def test_a_timestep_that_the_body_reads(activation: ActivationSpec) -> None:
    """It comes in the traced type, as compiled code reads it, and is refused where that changes it."""
    repeated = traced(Repeated())
    program = converted(grouped(repeated, (W8, activation)))
    parts = split_time_part(lower(program).lowered.graph_module, repeated)
    assert reads_timestep(parts.body, repeated)
    handed: list[torch.dtype] = []

    def body(*given: Tensor) -> tuple[Tensor, ...]:
        handed.append(given[1].dtype)
        return parts.body(*given)

    lowered = LoweredModule(repeated, body, parts.time, reads_timestep=True)
    x, expected = inputs(12)[0], program.graph_module(*inputs(12))[0]
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        found = lowered(x, torch.full((len(x),), 12, dtype=dtype))[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert handed == [torch.int64] * 4
    with pytest.raises(BackendError, match=r"the timestep 12\.5 is a fraction"):
        lowered(x, torch.full((len(x),), 12.5))


@pytest.mark.parametrize("timestep", [float("nan"), float("inf")])
def test_a_timestep_that_is_no_number(model: TracedModel, parts: TimePart, timestep: float) -> None:
    x, _, condition, positions = call([1, 1])
    with pytest.raises(BackendError, match="not a finite number"):
        LoweredModule(model, parts.body, parts.time)(x, torch.tensor([1.0, timestep]), condition, positions)


def test_no_samples(model: TracedModel, parts: TimePart) -> None:
    with pytest.raises(BackendError, match="no samples"):
        LoweredModule(model, parts.body, parts.time)(*call([]))


def test_several_rows_for_a_sample_of_several_timesteps() -> None:
    """Which rows are a sample's is not known: said, not guessed."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            scaled = sample.unflatten(0, (-1, 2)) * (1 + timestep / 1000).reshape(-1, 1, 1, 1, 1)
            return self.conv(scaled.flatten(0, 1))

    given = {"sample": torch.zeros(4, CHANNELS, SIZE, SIZE), "timestep": torch.tensor([1, 2])}
    frames = trace(seeded(Frames()), given)
    lowered = LoweredModule(frames, lower(converted(grouped(frames, (W8, STATIC)))).lowered.graph_module, None)
    x = inputs(1, 4)[0]
    assert lowered(x, torch.tensor([7, 7]))[0].shape[0] == 4
    with pytest.raises(BackendError, match="several rows for a sample"):
        lowered(x, torch.tensor([7, 8]))


def test_gives_a_tuple_without_gradients(model: TracedModel, parts: TimePart) -> None:
    lowered = LoweredModule(model, lambda *given: parts.body(*given)[0], parts.time)
    x, t, condition, positions = call([500, 500])
    found = lowered(x.requires_grad_(), t, condition, positions)
    assert isinstance(found, tuple) and len(found) == 1 and not found[0].requires_grad


def test_model_without_a_timestep() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)

        def forward(self, sample: Tensor) -> Tensor:
            return self.conv(sample)

    plain = trace(seeded(Plain()), {"sample": torch.zeros(2, CHANNELS, SIZE, SIZE)})
    pair = lower(converted(grouped(plain, (W8, STATIC))))
    lowered = LoweredModule(plain, pair.lowered.graph_module, None)
    x = inputs(1)[0]
    assert torch.equal(lowered(x)[0], pair.lowered.graph_module(x)[0])


def test_stays_on_the_cpu(model: TracedModel, parts: TimePart) -> None:
    lowered = LoweredModule(model, parts.body, parts.time)
    assert lowered.to("cpu") is lowered
    with pytest.raises(BackendError, match="this lowering is for the CPU") as error:
        lowered.to("meta")
    assert error.value.hint == "load the artifact with another --backend"
    assert all(tensor.device.type == "cpu" for tensor in parts.body.state_dict().values())


def test_weights_are_not_cast(model: TracedModel, parts: TimePart) -> None:
    before = {name: tensor.dtype for name, tensor in parts.body.state_dict().items()}
    LoweredModule(model, parts.body, parts.time).half()
    assert {name: tensor.dtype for name, tensor in parts.body.state_dict().items()} == before
