"""The graph in two parts computes what it computes in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from small_architectures import architecture_inputs, quantized_architecture
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    SIZE,
    STATIC,
    W4,
    W8,
    converted,
    copy_of,
    grouped,
    inputs,
    lower,
    needs_vnni,
    scale_channels,
    seeded,
    traced,
)
from torch import Tensor, fx, nn

from dmq_fx.lowering.int8_sites import SHIFTED, reached_kernels
from dmq_fx.lowering.time_part import FLOATS, INTEGERS, TimePart, split_time_part
from dmq_fx.program.output_shift import insert_output_shift
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.tracing import TracedModel, trace

pytestmark = needs_vnni
aten = torch.ops.aten


Join = Callable[[Tensor, Tensor], Tensor]


def image(emb: Tensor) -> Tensor:
    return emb[:, :, None, None]


JOINS: dict[str, Join] = {
    "added": lambda h, emb: h + image(emb),
    "a row of the image": lambda h, emb: torch.cat([image(emb).expand(-1, -1, 1, SIZE), h], 2)[:, :, :SIZE],
    "channels first": lambda h, emb: (h.transpose(0, 1) + emb.t()[:, :, None, None]).transpose(0, 1),
    "twice the batch": lambda h, emb: (torch.cat([h, h]) + torch.cat([image(emb), image(emb)]))[: h.shape[0]],
    "one image": lambda h, emb: (h.reshape(1, -1, SIZE, SIZE) + emb.reshape(1, -1, 1, 1)).reshape(h.shape),
    "float64": lambda h, emb: (h.double() + image(emb.double().exp())).float(),
    "sign": lambda h, emb: torch.where(image(emb) > 0, h, -h),
    "int32": lambda h, emb: h * image(emb > 0).to(torch.int32),
    "int64": lambda h, emb: h * image(emb > 0).long(),
    "chunks": lambda h, emb: h * image(torch.cat([part.sigmoid() for part in emb.chunk(3, dim=1)], 1)),
    "number of samples": lambda h, emb: h + image(emb + emb.new_zeros(emb.shape[0], 1)),
    "of the first sample": lambda h, emb: h * emb[0, 0] + emb[0].sum(),
}
"""How a graph may go on with what it makes of a timestep, h [batch, channels, height, width], emb [batch, channels].

Some of it cannot be handed over for one sample in a flat tensor, and so stays in the body.
"""


class Embedded(nn.Module):
    """A timestep's embedding joined to a sample, and sites on either side."""

    def __init__(self, join: Join = JOINS["added"]) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.ones(CHANNELS))
        self.time = nn.Linear(CHANNELS, CHANNELS)
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.last = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.join = join

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        emb = self.time((timestep[:, None].float() / 100 * self.frequencies).sin())
        return self.last(self.join(self.first(sample).sigmoid(), emb))


def split(program: TracedModel, lowered: fx.GraphModule) -> TimePart:
    parts = split_time_part(lowered, program)
    for part in (parts.time, parts.body):
        if part is not None:
            part.graph.lint()
    return parts


def run(parts: TimePart, given: Sequence[Tensor], timestep: int = 1) -> tuple[Tensor, ...]:
    with torch.no_grad():
        extra = parts.time(given[timestep][:1]) if parts.time is not None else ()
        return parts.body(*given, *extra)


def timestep_only(parts: TimePart, timestep: str) -> list[fx.Node]:
    """Nodes of the body that compute with the timestep's values and no others."""
    alone: set[fx.Node] = set()
    constant: set[fx.Node] = set()
    found = []
    for node in parts.body.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "get_attr" or node.target == aten.sym_size.int:
            constant.add(node)
        elif node.op == "placeholder" and node.name in (timestep, FLOATS, INTEGERS):
            alone.add(node)
        elif node.op == "call_function" and all(source in constant for source in sources):
            constant.add(node)
        elif node.op == "call_function" and all(source in constant | alone for source in sources):
            alone.add(node)
            if node.meta.get("dmq", {}).get("kind") != "time":
                found.append(node)
    return found


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("join", JOINS)
def test_same_outputs(join: str, spec: ActivationSpec) -> None:
    model = traced(Embedded(JOINS[join]))
    pair = lower(converted(grouped(model, lambda site: (W4, spec) if site.name != "time" else (None, None))))
    parts = split(model, pair.lowered.graph_module)
    assert parts.time is not None
    for timestep in (900, 510, 77):
        for batch in (1, 2, 5):
            given = inputs(timestep, batch)
            with torch.no_grad():
                expected = pair.lowered.graph_module(*given)
            torch.testing.assert_close(run(parts, given), expected, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_timestep_alone_stays_in_the_body() -> None:
    model = traced(Embedded())
    pair = lower(converted(grouped(model, (W8, BY_TIMESTEP))))
    whole = [node.name for node in pair.lowered.graph_module.graph.nodes]
    parts = split(model, pair.lowered.graph_module)
    assert parts.time is not None
    assert timestep_only(parts, "timestep") == []
    (timestep,) = (node for node in parts.body.graph.nodes if node.name == "timestep")
    assert not timestep.users
    assert set(reached_kernels(parts.time.graph)) == {"time"}
    assert set(reached_kernels(parts.body.graph)) == {"first", "last"}
    assert not {name for name in parts.body.state_dict() if name.startswith(("time", "dmq", "frequencies"))}
    assert [node.name for node in pair.lowered.graph_module.graph.nodes] == whole  # is not changed


def test_two_flat_tensors_are_handed_over() -> None:
    model = traced(Embedded())
    pair = lower(converted(grouped(model, (W8, BY_TIMESTEP))))
    parts = split(model, pair.lowered.graph_module)
    assert parts.time is not None
    for dtype in (torch.int64, torch.float32):
        floats, integers = parts.time(torch.tensor([500], dtype=dtype))
        assert floats.dtype == torch.float32 and integers.dtype == torch.int64
        assert floats.dim() == integers.dim() == 1 and len(floats) >= CHANNELS
    names = [node.name for node in parts.body.graph.nodes if node.op == "placeholder"]
    assert names == ["sample", "timestep", FLOATS, INTEGERS]


def test_shifted_weights_are_made_in_the_body() -> None:
    """They are as large as the weights: not to be kept for every timestep."""
    model = traced(Embedded())
    program = grouped(model, lambda site: (W4, BY_TIMESTEP) if site.name != "time" else (None, None))
    scale_channels(program, gamma=True, shifts=3)
    pair = lower(converted(program))
    parts = split(model, pair.lowered.graph_module)
    assert parts.time is not None
    left = timestep_only(parts, "timestep")
    assert [node.meta.get("dmq", {}).get("kind") for node in left] == [SHIFTED, None] * 2
    assert [node.target for node in left] == [aten.mul.Tensor, aten.to.dtype] * 2
    weights = CHANNELS * CHANNELS * 9
    assert len(parts.time(torch.tensor([1]))[0]) < weights / 2
    for timestep in (900, 100):
        given = inputs(timestep)
        torch.testing.assert_close(run(parts, given), pair.lowered.graph_module(*given), rtol=1e-4, atol=1e-4)


def test_ranges_of_sites_that_are_not_lowered() -> None:
    """They have a scale for every sample still."""
    model = traced(Embedded())
    left = WeightSpec(bits=8, symmetric=False)
    pair = lower(converted(grouped(model, lambda site: (left if site.name == "last" else W8, BY_TIMESTEP))))
    parts = split(model, pair.lowered.graph_module)
    assert set(reached_kernels(parts.body.graph)) == {"first"}
    assert timestep_only(parts, "timestep") == []
    for timestep in (900, 100):
        for batch in (1, 2, 5):
            given = inputs(timestep, batch)
            with torch.no_grad():
                expected = pair.fake.graph_module(*given)
            torch.testing.assert_close(run(parts, given), expected, rtol=1e-3, atol=1e-3)


def test_table_of_output_corrections() -> None:
    model = traced(Embedded())
    program = converted(grouped(model, (W8, BY_TIMESTEP)))
    program.output_shift = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(0))
    insert_output_shift(program)
    pair = lower(program)
    parts = split(model, pair.lowered.graph_module)
    assert timestep_only(parts, "timestep") == []
    for timestep in (900, 100):
        given = inputs(timestep, 5)
        with torch.no_grad():
            expected = program.graph_module(*given)
        torch.testing.assert_close(run(parts, given), expected, rtol=1e-3, atol=1e-3)


class Untimed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)

    def forward(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        return self.conv(sample if timestep is None else sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1))


def test_model_without_a_timestep() -> None:
    model = trace(seeded(Untimed()), {"sample": torch.zeros(2, CHANNELS, SIZE, SIZE)})
    pair = lower(converted(grouped(model, (W8, STATIC))))
    parts = split(model, pair.lowered.graph_module)
    assert parts == TimePart(None, pair.lowered.graph_module)


def test_timestep_that_meets_no_tensor_of_the_model() -> None:
    model = traced(Untimed())
    pair = lower(converted(grouped(model, (W8, STATIC))))
    parts = split(model, pair.lowered.graph_module)
    assert parts.time is not None
    for timestep in (900, 100):
        given = inputs(timestep, 3)
        torch.testing.assert_close(run(parts, given), pair.lowered.graph_module(*given))


@pytest.mark.parametrize("name", ["ddpm-class", "wan"])
def test_architectures(name: str) -> None:
    """One with class labels, whose embedding meets that of the timestep; one with several values of a timestep."""
    program = quantized_architecture(name)
    pair = lower(copy_of(program))
    parts = split(program.traced, pair.lowered.graph_module)
    assert parts.time is not None
    position = program.timestep_position
    assert position is not None and program.traced.timestep is not None
    assert timestep_only(parts, program.traced.timestep) == []
    for timestep in (900.0, 333.0):
        for batch in (1, 2, 5):
            given = architecture_inputs(name, [timestep] * batch)
            with torch.no_grad():
                expected = pair.lowered.graph_module(*given)[0]
            found = run(parts, given, position)[0]
            # products of one row and of several differ in the last bit, and may move an integer
            assert float((found - expected).norm() / expected.norm()) < 2e-2
            assert batch > 1 or torch.equal(found, expected)


class OfBatch(nn.Module):
    """Scales a sample by what is made of the timesteps of all samples."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.of = of

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.conv(sample * (self.of(timestep.float()) / 1000).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("of", [torch.sum, lambda t: t + torch.arange(t.shape[0])], ids=["sum", "row"])
def test_what_depends_on_the_batch_stays_in_the_body(of: Callable[[Tensor], Tensor]) -> None:
    model = traced(OfBatch(of))
    pair = lower(converted(grouped(model, (W8, STATIC))))
    parts = split(model, pair.lowered.graph_module)
    for batch in (1, 2, 3):
        given = inputs(500, batch)
        torch.testing.assert_close(run(parts, given)[0], pair.lowered.graph_module(*given)[0])
