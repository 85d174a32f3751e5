"""Sites without a kernel compute what fake quantization does, in native code too."""

from __future__ import annotations

from pathlib import Path
from weakref import ref

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    CHANNELS,
    STATIC,
    UNSIGNED,
    W8,
    Specs,
    converted,
    copy_of,
    grouped,
    inputs,
    needs_vnni,
    traced,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from dmq_fx.lowering.kernels import int8_kernels
from dmq_fx.lowering.module import LoweredModule
from dmq_fx.lowering.native import NativeCode, example_inputs, load_package, write_package
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.lowering.without_kernel import hide_from_patterns, mark_weights
from dmq_fx.program import Program
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.sites import Site

qd = torch.ops.quantized_decomposed
SIX_BITS = ActivationSpec(bits=6)


class Bare(nn.Module):
    """Two layers for weights that no kernel takes, one of them behind a kernel, and a weight-only one."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.kernel = nn.Linear(CHANNELS, 16)
        self.behind = nn.Linear(16, 8)
        self.only = nn.Linear(CHANNELS, 4)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        x = sample * (1.0 + timestep // 1000).reshape(-1, 1, 1, 1)
        tokens = x.flatten(2).transpose(1, 2)
        return self.image(x), self.behind(torch.relu(self.kernel(tokens))), self.only(tokens)


def specs(site: Site) -> Specs:
    found: dict[str, tuple[WeightSpec, ActivationSpec | None]] = {
        "image": (UNSIGNED, STATIC),
        "kernel": (W8, BY_TIMESTEP),
        "behind": (UNSIGNED, SIX_BITS),
        "only": (UNSIGNED, None),
    }
    return found[site.name]


@pytest.fixture(scope="module")
def fake() -> Program:
    return converted(grouped(traced(Bare()), specs))


def bare() -> GraphModule:
    """The graph of a program that nothing else holds, its weights marked."""
    program = converted(grouped(traced(Bare()), specs))
    mark_weights(program, int8_kernels(program))
    return program.graph_module


def test_the_same_numbers_without_operators_that_inductor_knows(fake: Program) -> None:
    module = bare()
    assert sum(node.target is qd.quantize_per_tensor.default for node in module.graph.nodes) == 2
    hide_from_patterns(module)
    assert not any(node.target is qd.quantize_per_tensor.default for node in module.graph.nodes)
    for given in (inputs(900), inputs(100, batch=3, seed=1)):
        found, expected = module(*given), fake.graph_module(*given)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_weights_beside_quantized_activations_become_values() -> None:
    """Their integers are let go; that of a weight-only site, and of one that has a kernel, stay as they are."""
    module = bare()
    held = {name: ref(tensor) for name, tensor in module.named_buffers() if name.endswith("weight")}
    hide_from_patterns(module)
    assert {name for name, tensor in module.state_dict().items() if tensor.dtype == torch.uint8} == {"only.weight"}
    assert {name for name, tensor in held.items() if tensor() is not None} == {"only.weight", "kernel.weight"}


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
def test_in_native_code(fake: Program, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Six-bit integers behind a kernel are clamped as such, and Inductor packs no weight for a kernel of its own."""
    program = copy_of(fake)
    parts = rewrite(program, dtype)
    assert parts.time is not None
    extra = parts.time(example_inputs(program.traced)[1][:1])
    counters.clear()
    write_package(tmp_path, parts.body, program.traced, extra, {})
    found = counters["inductor"]
    assert not found["qconv_weight_prepack_matcher_count"] and not found["qlinear_weight_prepack_matcher_count"]
    code = load_package(tmp_path)[0]
    assert isinstance(code, NativeCode)
    unsigned = [tensor for tensor in code.constants.values() if tensor.dtype == torch.uint8]
    assert [tuple(tensor.shape) for tensor in unsigned] == [(4, CHANNELS)]  # of the weight-only layer
    native = LoweredModule(program.traced, code, parts.time)
    for given in (inputs(500), inputs(500, batch=3, seed=1)):
        for one, other in zip(native(*given), fake.graph_module(*given), strict=True):
            assert (one - other).norm() < tolerance * other.norm()
