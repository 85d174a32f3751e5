"""Features are the output of the last block (mpq-dm 6.1), in every family, found from the graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import catalog
import pytest
import torch
from torch import Tensor, fx, nn

from dmq_fx.compiler import resolve_recipe
from dmq_fx.distillation.feature import find_feature
from dmq_fx.distillation.options import DistillationOptions
from dmq_fx.distillation.student import Student, Teacher
from dmq_fx.errors import CalibrationError
from dmq_fx.planning import make_plan
from dmq_fx.program import Program
from dmq_fx.roles import find_sites
from dmq_fx.tracing import bind_inputs, trace

LAST_BLOCK = {
    "ddpm": "up_blocks.2",
    "ddpm-class": "up_blocks.1",
    "sd": "up_blocks.1",
    "sdxl": "up_blocks.1",
    "dit": "transformer_blocks.1",
    "pixart-alpha": "transformer_blocks.1",
    "pixart-sigma": "transformer_blocks.1",
    "sd3": "transformer_blocks.1",
    "flux": "single_transformer_blocks.1",
    "sana": "transformer_blocks.1",
    "hunyuan-dit": "blocks.3",
    "cogvideox": "transformer_blocks.1",
    "wan": "blocks.1",
}
"""The module whose output is expected: what the search in the graph has to find without its name."""


def program_of(traced: Any) -> Program:
    plan = make_plan(resolve_recipe("ptq/w8a8").recipe, find_sites(traced), traced)
    return Program(traced, plan, torch.tensor([1]))


def output_of(model: nn.Module, name: str, inputs: dict[str, Any]) -> list[Tensor]:
    """What a module of the original model returns."""
    seen: list[Any] = []
    with torch.no_grad(), model.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(out)):
        model(**inputs)
    return [seen[0]] if isinstance(seen[0], Tensor) else [one for one in seen[0] if isinstance(one, Tensor)]


@pytest.mark.parametrize("name", catalog.TINY)
def test_is_the_output_of_the_last_block(name: str) -> None:
    program = program_of(catalog.traced_tiny(name))
    inputs = catalog.tiny_inputs(name)
    arguments = bind_inputs(program.traced, (), inputs)
    feature = Teacher(program, feature="last_block")(arguments)[1]
    assert feature is not None
    outputs = output_of(catalog.tiny_model(name), LAST_BLOCK[name], inputs)
    if name == "flux":  # text and image in one sequence: the text is cut off before the norm
        outputs = [outputs[-1][:, -feature.shape[1] :]]
    same = [one for one in outputs if one.shape == feature.shape]
    assert any(torch.allclose(one, feature, atol=1e-4, rtol=1e-4) for one in same)
    axis = find_feature(program, "last_block").channel_axis
    assert axis == (1 if feature.dim() == 4 else 2)  # [batch, channels, height, width], [batch, tokens, channels]


def test_the_last_layers_input_can_be_asked_for(make: Any) -> None:
    program, _ = make()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    arguments = (x, torch.tensor([750, 250, 1]))
    layer = Teacher(program, feature="last_layer")(arguments)[1]
    prediction, block = Teacher(program, feature="last_block")(arguments)
    assert layer is not None and block is not None
    module = program.traced.graph_module
    torch.testing.assert_close(nn.functional.conv2d(layer, *tensors(module, "conv_out"), padding=1), prediction)
    (norm,) = [user for user in program.nodes[find_feature(program, "last_block").node].users]
    _, groups, *_, eps = norm.args
    normed = nn.functional.group_norm(block, groups, *tensors(module, "conv_norm_out"), eps=eps)
    torch.testing.assert_close(nn.functional.silu(normed), layer)
    sites = [planned for planned in program.plan.for_pass("lora_distill") if planned.weight]
    for kind, exact in (("last_layer", layer), ("last_block", block)):
        student = Student(program, sites, DistillationOptions(rank=4, feature=kind), 0, feature=True)
        with torch.no_grad():
            rounded = student(arguments)[1]
        assert rounded is not None and rounded.shape == exact.shape and not torch.equal(rounded, exact)
        assert torch.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.9


def tensors(module: fx.GraphModule, name: str) -> tuple[Tensor, Tensor]:
    owner = module.get_submodule(name)
    return owner.weight, owner.bias  # type: ignore[return-value]


class Denoiser(nn.Module):
    """What stands between its last two layers is chosen."""

    config = SimpleNamespace()

    def __init__(self, between: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.middle, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.between = between

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = self.middle(self.first(sample))
        if self.between == "rms":  # several operators, in which the sample meets itself
            x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        if self.between == "two norms":
            x = self.norm(self.norm(x) * (1 + timestep.float().reshape(-1, 1, 1, 1)))
        return self.last(nn.functional.silu(x))


@pytest.mark.parametrize(("between", "node"), [("nothing", "silu"), ("rms", "silu"), ("two norms", "conv2d_1")])
def test_without_a_norm_it_is_the_last_layers_input(between: str, node: str) -> None:
    sample = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    program = program_of(trace(Denoiser(between), {"sample": sample, "timestep": torch.tensor([3, 7])}))
    assert find_feature(program, "last_block").node == node
    assert find_feature(program, "last_layer").node == "silu"


def test_a_model_without_a_last_site(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = make()
    monkeypatch.setattr(program, "plan", SimpleNamespace(sites=()))
    with pytest.raises(CalibrationError, match="no site of this model has the role `last`") as error:
        find_feature(program, "last_block")
    assert "distance: none" in (error.value.hint or "")
