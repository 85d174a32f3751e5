"""Native code adds products to their residuals in memory of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_programs import STATIC, W8, converted, copy_of, grouped, needs_vnni, seeded
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.lowering.native import load_package, require_agreement, write_package
from dmq_fx.lowering.rewrite import rewrite
from dmq_fx.tracing import trace

WIDTH = 16


class Residuals(nn.Module):
    """Products added to an input of the graph, to a value, and to a view of that sum, which is read once more."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        a = torch.tanh(sample * 2) + self.first(torch.tanh(sample))
        view = a.unflatten(1, (4, 2))
        b = view + self.second(torch.tanh(view))
        return sample + self.third(self.norm(sample)), b, torch.sin(a)


@needs_vnni
@pytest.mark.slow
def test_residuals_are_not_written_to(tmp_path: Path) -> None:
    model = seeded(Residuals())
    traced = trace(model, {"sample": torch.zeros(2, 8, WIDTH), "timestep": torch.tensor([1, 2])})
    fake = converted(grouped(traced, (W8, STATIC)))
    parts = rewrite(copy_of(fake), torch.float32)
    write_package(tmp_path, parts.body, traced, (), {})
    code = load_package(tmp_path)[0]
    sample = torch.randn(3, 8, WIDTH, generator=torch.Generator().manual_seed(0))
    given = sample.clone()
    with torch.no_grad():
        found, expected = code(given, torch.full((3,), 500)), fake.graph_module(sample, torch.full((3,), 500))
    assert torch.equal(given, sample)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_code_that_writes_into_its_inputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(x: Tensor) -> list[Tensor]:
        return [x.add_(1)]

    monkeypatch.setattr("dmq_fx.lowering.native.load_package", lambda folder: (code, {}, {}))
    with pytest.raises(BackendError, match="changes its inputs"):
        require_agreement(tmp_path, lambda x: [x + 1], (torch.zeros(2),))
