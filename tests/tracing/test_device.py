"""A graph that was traced on meta runs on a real device once it is retargeted and has weights."""

import copy

import pytest
import torch
from catalog import tiny_inputs, traced_tiny

from dmq_fx.tracing import bind_inputs, graph_fingerprint, retarget


@pytest.mark.parametrize("name", ["ddpm", "flux", "wan"])
def test_meta_graph_runs_with_the_real_tensors(name: str) -> None:
    real = traced_tiny(name)
    meta = traced_tiny(name, "meta")
    graph_module = copy.deepcopy(meta.graph_module)
    before = graph_fingerprint(graph_module)
    retarget(graph_module, "cpu")
    assert graph_fingerprint(graph_module) == before
    graph_module.load_state_dict(real.graph_module.state_dict(), strict=True, assign=True)
    flat = bind_inputs(meta, (), tiny_inputs(name, 3))
    with torch.no_grad():
        torch.testing.assert_close(graph_module(*flat), real.graph_module(*flat))


def test_every_device_argument_is_rewritten() -> None:
    graph_module = copy.deepcopy(traced_tiny("ddpm").graph_module)
    retarget(graph_module, "meta")
    devices = {node.kwargs["device"] for node in graph_module.graph.nodes if node.kwargs.get("device") is not None}
    assert devices == {torch.device("meta")}


def test_fingerprint_sees_changes() -> None:
    graph_module = copy.deepcopy(traced_tiny("ddpm").graph_module)
    before = graph_fingerprint(graph_module)
    node = next(node for node in graph_module.graph.nodes if node.target is torch.ops.aten.group_norm.default)
    node.args = (node.args[0], 2, *node.args[2:])
    assert graph_fingerprint(graph_module) != before
