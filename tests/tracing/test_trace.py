"""Graphs compute what the models compute, at any batch, and say the same on every device."""

import pytest
import torch
from catalog import TINY, tiny_inputs, tiny_model, traced_tiny
from torch import nn
from torch.utils import _pytree as pytree

from dmq_fx.errors import TraceError
from dmq_fx.tracing import bind_inputs, graph_fingerprint, trace


@pytest.mark.parametrize("name", TINY)
def test_graph_equals_the_model_at_any_batch(name: str) -> None:
    denoiser, traced = tiny_model(name), traced_tiny(name)
    for batch in (1, 2, 3, 65):
        inputs = tiny_inputs(name, batch)
        with torch.no_grad():
            expected = denoiser(**inputs, return_dict=False)[0]
            (found,) = traced.graph_module(*bind_inputs(traced, (), inputs))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert expected.std() > 0.1


@pytest.mark.parametrize("name", TINY)
def test_graph_from_meta_is_the_same(name: str) -> None:
    real, meta = traced_tiny(name), traced_tiny(name, "meta")
    assert graph_fingerprint(real.graph_module) == graph_fingerprint(meta.graph_module)
    assert real.input_paths == meta.input_paths
    assert [n.name for n in real.graph.nodes] == [n.name for n in meta.graph.nodes]


@pytest.mark.parametrize("name", TINY)
def test_form_of_the_graph(name: str) -> None:
    traced = traced_tiny(name)
    traced.graph.lint()
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    assert [node.name for node in placeholders] == [entry.name for entry in traced.inputs]
    assert len(traced.example) == len(traced.inputs)
    assert traced.timestep == "timestep"
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert not [
        target for target in targets if "assert" in target or "dropout" in target or target.endswith("_.Tensor")
    ]
    assert not {node.op for node in traced.graph.nodes} & {"call_module", "call_method"}
    assert not traced.graph_module._forward_pre_hooks


@pytest.mark.parametrize("name", TINY)
def test_tensors_keep_their_names(name: str) -> None:
    """Everything the graph reads is in its state dict, tables that are no weights included."""
    graph_module, weights = traced_tiny(name).graph_module, tiny_model(name).state_dict()
    state = graph_module.state_dict()
    assert set(weights) <= set(state)
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    assert set(state) == read
    for key, tensor in weights.items():
        assert torch.equal(state[key], tensor)


@pytest.mark.parametrize(("name", "multiple"), [("ddpm", 4), pytest.param("sd", 2, marks=pytest.mark.slow)])
def test_any_height_and_width(name: str, multiple: int) -> None:
    denoiser, inputs = tiny_model(name), tiny_inputs(name)
    traced = trace(denoiser, inputs, dynamic_size=True)
    assert traced.inputs[0].dims == (None, 4, None, None)
    assert traced.size_multiple == multiple
    for size in ((8, 8), (16, 12), (4, 20)):
        call = {**inputs, "sample": torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))}
        with torch.no_grad():
            expected = denoiser(**call, return_dict=False)[0]
            (found,) = traced.graph_module(*bind_inputs(traced, (), call))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_module_names_and_values_stay_in_the_metadata() -> None:
    traced = traced_tiny("sd")
    for node in traced.graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            assert list(node.meta["nn_module_stack"].values())[-1][0].endswith(("attn1", "attn2"))


def test_arguments_that_are_no_tensors_are_remembered() -> None:
    class Scaled(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return sample * timestep[:, None] * scale

    traced = trace(Scaled(), {"sample": torch.ones(2, 3), "timestep": torch.ones(2), "scale": 2.0})
    assert traced.constants == {"scale": 2.0}
    assert traced.input_paths == ("sample", "timestep")


def test_batch_of_one_is_refused() -> None:
    with pytest.raises(TraceError, match="a batch of 1\n  hint: give a batch of at least two"):
        trace(tiny_model("ddpm"), tiny_inputs("ddpm", batch=1))


def test_code_that_fixes_the_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            return sample if int(sample.shape[0]) == 2 else sample + 1

    with pytest.raises(TraceError, match="the model's code fixes the batch of 'sample' to 2"):
        trace(Fixed(), {"sample": torch.ones(2, 3)})


def test_example_inputs_may_nest() -> None:
    paths = traced_tiny("sdxl").input_paths
    assert paths[-2:] == ("added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids")
    assert traced_tiny("hunyuan-dit").input_paths[-2:] == ("image_rotary_emb.0", "image_rotary_emb.1")
    leaves = pytree.tree_leaves(tiny_inputs("sdxl"))
    assert len(paths) == len(leaves)
