"""Values of a graph for rows of the calibration set: those of the graph itself, within the limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, fx

from dmq_fx.calibration.minibatches import Minibatches
from dmq_fx.calibration.store import CalibrationSet, CalibrationWriter
from dmq_fx.calibration.value_store import Rows, ValueStore
from dmq_fx.errors import CalibrationError
from dmq_fx.program.graph_tools import get_tensor, working_copy
from dmq_fx.roles import find_sites
from dmq_fx.tracing import TracedModel

CPU = torch.device("cpu")


def calibration(path: Path, traced: TracedModel, *, files: int = 2, steps: int = 3, batch: int = 3) -> CalibrationSet:
    """Random inputs as a sampler would give them: one timestep a step."""
    generator = torch.Generator().manual_seed(5)
    fixed = {entry.path: value for entry, value in zip(traced.inputs, traced.example, strict=True) if not entry.batched}
    with CalibrationWriter(path, {"timesteps": [900.0, 500.0, 100.0][:steps]}) as writer:
        for index in range(files):
            rows = []
            for step in range(steps):
                row = dict(fixed)
                for entry, value in zip(traced.inputs, traced.example, strict=True):
                    shape = (batch, *value.shape[1:])
                    if entry.name == traced.timestep:
                        row[entry.path] = torch.full(shape, 900 - 400 * step).to(value.dtype)
                    elif entry.batched and value.is_floating_point():
                        row[entry.path] = torch.randn(shape, generator=generator)
                    elif entry.batched:
                        row[entry.path] = torch.randint(0, 5, shape, generator=generator).to(value.dtype)
                rows.append(row)
            writer.add_batch(index, rows)
    return CalibrationSet.open(path)


def direct(traced: TracedModel, arguments: tuple[Tensor, ...], scaled: str | None = None) -> dict[str, Tensor]:
    """Every value of one forward; the weight `scaled` doubled."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            value = super().run_node(n)
            found[n.name] = value * 2 if n.op == "get_attr" and n.target == scaled else value
            return found[n.name]

    with torch.no_grad():
        Watch(traced.graph_module).run(*arguments)
    return found


@pytest.mark.parametrize("limit", [10**9, 1])
@pytest.mark.parametrize("name", ["ddpm", "sd", "dit", "cogvideox"])
def test_values_are_those_of_the_graph_whatever_memory_lasts_for(
    tmp_path: Path, architectures: ModuleType, name: str, limit: int
) -> None:
    traced = architectures.traced_tiny(name)
    minibatches = Minibatches(traced, calibration(tmp_path / "set", traced), batch=4, seed=0, device=CPU)
    picks = minibatches.spread(10)
    expected = direct(traced, minibatches.take(picks))
    store = ValueStore(traced, minibatches, picks, batch=4, limit=limit)
    for site in find_sites(traced):
        if site.weight is None:
            continue
        source = next(node for node in traced.graph.nodes if node.name == site.node).args[0]
        assert isinstance(source, fx.Node)
        for rows, node in zip(store.get([source.name, site.node]), (source.name, site.node), strict=True):
            torch.testing.assert_close(rows.values, expected[node], rtol=1e-4, atol=1e-4)
            assert not rows.values.requires_grad
        assert store.bytes <= limit or limit == 1


def test_values_are_kept_while_they_lead_somewhere_and_within_the_limit(
    tmp_path: Path, architectures: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = architectures.traced_tiny("ddpm")
    minibatches = Minibatches(traced, calibration(tmp_path / "set", traced), batch=8, seed=0, device=CPU)
    picks = minibatches.spread(8)
    computed = count_nodes(monkeypatch)
    sites = [site.node for site in find_sites(traced) if site.weight]
    total = sum(node.op == "call_function" for node in traced.graph.nodes)
    peaks: list[int] = []
    counts: list[int] = []
    for _ in range(2):
        limit = peaks[0] // 2 if peaks else 10**9
        store, peak = ValueStore(traced, minibatches, picks, batch=8, limit=limit), 0
        computed.clear()
        for node in sites:
            store.get([node])
            peak = max(peak, store.bytes)
        peaks.append(peak)
        counts.append(len(computed))
    assert total < counts[0] < 1.5 * total  # a walk costs little more than a forward
    assert counts[1] > counts[0] and peaks[1] <= peaks[0] // 2


def count_nodes(monkeypatch: pytest.MonkeyPatch) -> list[fx.Node]:
    """Every node that a store computes from now on."""
    from dmq_fx.calibration import value_store

    seen: list[fx.Node] = []
    original = value_store.extract

    def watched(traced: TracedModel, nodes: set[fx.Node], *rest: object) -> object:
        piece = original(traced, nodes, *rest)  # type: ignore[arg-type]
        seen.extend(nodes)
        return piece

    monkeypatch.setattr(value_store, "extract", watched)
    return seen


def test_weights_can_be_others_than_the_graphs(tmp_path: Path, architectures: ModuleType) -> None:
    traced = architectures.traced_tiny("ddpm")
    minibatches = Minibatches(traced, calibration(tmp_path / "set", traced), batch=4, seed=0, device=CPU)
    picks = minibatches.spread(4)
    name = "conv_in.weight"
    store = ValueStore(
        traced,
        minibatches,
        picks,
        batch=4,
        limit=10**9,
        weights={name},
        weight=lambda found: 2 * get_tensor(traced.graph_module, found),
    )
    last = next(site.node for site in find_sites(traced) if site.name == "conv_out")
    exact, doubled = direct(traced, minibatches.take(picks)), direct(traced, minibatches.take(picks), scaled=name)
    (found,) = store.get([last])
    torch.testing.assert_close(found.values, doubled[last], rtol=1e-4, atol=1e-4)
    assert float((exact[last] - doubled[last]).abs().max()) > 1e-3


def test_a_value_that_does_not_follow_the_batch_must_be_the_same_everywhere(
    tmp_path: Path, architectures: ModuleType
) -> None:
    traced = architectures.traced_tiny("ddpm")
    module = working_copy(traced.graph_module)
    sample = next(node for node in module.graph.nodes if node.name == "sample")
    with module.graph.inserting_after(sample):
        mean = module.graph.call_function(torch.ops.aten.mean.default, (sample,))
        mean.meta["val"] = sample.meta["val"].mean()
    traced = replace(traced, graph_module=module)
    minibatches = Minibatches(traced, calibration(tmp_path / "set", traced), batch=4, seed=0, device=CPU)
    store = ValueStore(traced, minibatches, minibatches.spread(8), batch=4, limit=10**9)
    with pytest.raises(CalibrationError, match="does not follow the batch, but is not the same for all calibration"):
        store.get([mean.name])


def test_rows_are_taken_by_samples() -> None:
    values = torch.arange(12).reshape(6, 2)
    picks = torch.tensor([2, 0])
    assert Rows(values, 0).take(picks) is values
    assert torch.equal(Rows(values, 1).take(picks), values[[2, 0]])
    assert torch.equal(Rows(values, 2).take(picks), values[[4, 5, 0, 1]])  # two frames a sample
