"""Norms that a quantize follows become one call with the same integers, and others stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_programs import (
    BY_TIMESTEP,
    STATIC,
    W8,
    c_calls,
    converted,
    copy_of,
    grouped,
    inputs,
    kernel_nodes,
    lower,
    needs_vnni,
    scale_channels,
    traced,
)
from torch import Tensor, fx, nn

from dmq_fx.lowering.fused_norms import fuse_norms
from dmq_fx.lowering.native import load_package, write_package
from dmq_fx.lowering.norm_quantize import NORM_QUANTIZE
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.recipe.language import ActivationSpec

pytestmark = needs_vnni
aten = torch.ops.aten
SPECS = {"static": STATIC, "per timestep": BY_TIMESTEP, "6 bits symmetric": ActivationSpec(bits=6, symmetric=True)}
WIDTH = 24


class Block(nn.Module):
    """A residual block with a strided layer, layers that read pixels as rows, a norm of what has channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 6)
        self.enter = nn.Conv2d(6, WIDTH, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, WIDTH, eps=1e-3, affine=groups != 3) for groups in (8, 3, 4, 6))
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, (3, 1), stride=2, padding=(1, 0))
        self.third = nn.Conv2d(WIDTH, 5, 1)
        self.rows = nn.Linear(WIDTH, WIDTH)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        x = self.enter(self.norm(sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)))
        y = self.first(nn.functional.silu(self.norms[0](x)))
        z = self.second(nn.functional.silu(self.norms[1](y + x)))
        flat = self.norms[2](x.flatten(2)).transpose(1, 2)
        return z, self.rows(flat), self.third(self.norms[3](y).permute(0, 1, 3, 2))


class Apart(nn.Module):
    """A norm whose result is read beside its integers, one that a sum follows, and one of a layer in full precision."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(2, 6) for _ in range(3))
        self.first, self.second, self.whole = (nn.Conv2d(6, 6, 1) for _ in range(3))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)
        a = self.norms[0](x)
        b = self.first(a) + a
        return self.second(self.norms[1](b) + x) + self.whole(self.norms[2](x))


def calls(graph: fx.Graph, target: object) -> int:
    return sum(node.target is target for node in graph.nodes)


def integers_of(module: fx.GraphModule, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """What kernels read, by site."""
    seen: dict[str, Tensor] = {}

    class Read(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            if "kernel" in n.meta.get("dmq", {}):
                seen[n.meta["dmq"]["site"]] = self.fetch_args_kwargs_from_env(n)[0][0]
            return super().run_node(n)

    with torch.no_grad():
        Read(module).run(*given)
    return seen


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("gamma", [False, True], ids=["one scale", "scaled by channel"])
def test_the_same_integers(spec: ActivationSpec, gamma: bool) -> None:
    """But where a value lies as near to the middle of two integers as floats can tell."""
    program = grouped(traced(Block()), (W8, spec))
    if gamma:
        scale_channels(program, gamma=True)
    pair = lower(converted(program))
    fused = copy_of(pair.lowered)
    scaled = sum(activation.index in pair.fake.input_scales for activation in pair.fake.activations)
    assert bool(scaled) == gamma
    assert fuse_norms(fused.graph_module) == 5
    assert calls(fused.graph_module.graph, NORM_QUANTIZE) == 5
    assert calls(fused.graph_module.graph, aten.group_norm.default) == 0
    for timestep in (900, 120):
        given = inputs(timestep, 3)
        found, expected = (integers_of(each.graph_module, given) for each in (fused, pair.lowered))
        assert set(found) == set(expected) == set(kernel_nodes(pair.lowered.graph_module.graph))
        for site in ("enter", "first", "second", "third", "rows"):
            assert found[site].shape == expected[site].shape
            difference = (found[site].int() - expected[site].int()).abs()
            assert int(difference.max()) <= (1 if site in ("enter", "first", "rows") else 2)
            assert float((difference > 0).float().mean()) < 1e-3


def test_what_stays_apart() -> None:
    specs = {"first": STATIC, "second": STATIC, "whole": None}
    program = grouped(traced(Apart()), lambda site: (W8 if specs[site.name] else None, specs[site.name]))
    pair = lower(converted(program))
    assert fuse_norms(copy_of(pair.lowered).graph_module) == 0


class Square(nn.Module):
    """Layers that read what a norm gives along another axis than its channels, of the same size."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self.norm, self.behind = nn.GroupNorm(2, 6), behind
        self.linear = nn.Linear({"rows": 6, "width": 5, "all": 150}[behind], 7)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        x = sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)
        if self.behind == "rows":
            return self.linear(self.norm(x.flatten(2)[:, :, :6].contiguous()))
        x = self.norm(x)
        return self.linear(x if self.behind == "width" else x.flatten(1))


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP], ids=["static", "per timestep"])
@pytest.mark.parametrize("behind", ["rows", "width", "all"])
def test_scales_along_another_axis(spec: ActivationSpec, behind: str) -> None:
    program = grouped(traced(Square(behind)), (W8, spec))
    scale_channels(program, gamma=True)
    pair = lower(converted(program))
    fused = copy_of(pair.lowered)
    folded = len(pair.fake.folded)
    assert fuse_norms(fused.graph_module) == folded
    for timestep in (900, 120):
        given = inputs(timestep, 2)
        with torch.no_grad():
            found, expected = (each.graph_module(*given)[0] for each in (fused, pair.lowered))
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


class Own(nn.Module):
    """A norm whose parameters are computed, and a model's own bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        x = sample * (1 + timestep / 1000).reshape(-1, 1, 1, 1)
        y = nn.functional.group_norm(x, 2, self.weight + 1)
        shown = nn.functional.group_norm(x, 3).mul(255.0).round().add(0.5).clamp(0.0).to(torch.uint8)
        return self.conv(y), shown


def test_what_is_not_asked_for() -> None:
    pair = lower(converted(grouped(traced(Own()), (W8, BY_TIMESTEP))))
    assert fuse_norms(copy_of(pair.lowered).graph_module) == 0
    rewrite(copy_of(pair.fake), torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_code(tmp_path: Path, dtype: torch.dtype) -> None:
    """Any batch by the one package, by C functions; channels that do not lie last are moved."""
    pair = lower(converted(grouped(traced(Block()), (W8, BY_TIMESTEP))))
    parts = rewrite(copy_of(pair.fake), dtype)
    assert parts.time is not None and calls(parts.body.graph, NORM_QUANTIZE) == 5
    extra = parts.time(torch.tensor([500]))
    write_package(tmp_path, parts.body, pair.fake.traced, extra, {})
    assert c_calls(tmp_path, "norm_quantize") == 5
    code = load_package(tmp_path)[0]
    for batch in (1, 3):
        given = inputs(500, batch)
        with torch.no_grad():
            found, expected = code(*given, *extra), pair.fake.graph_module(*given)
        for one, other in zip(found, expected, strict=True):
            error = float((one - other).norm() / other.norm())
            assert error < (0.05 if dtype == torch.bfloat16 else 0.01)
