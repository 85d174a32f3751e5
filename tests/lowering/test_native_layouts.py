"""Native code reads and writes the layouts that Inductor takes them for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_programs import BY_TIMESTEP, VIEWS, W8, converted, copy_of, grouped, inputs, needs_vnni, traced
from torch import Tensor, nn

from dmq_fx.errors import BackendError
from dmq_fx.lowering.fold import fold_packed_weights
from dmq_fx.lowering.module import LoweredModule
from dmq_fx.lowering.native import (
    example_inputs,
    load_package,
    random_inputs,
    require_agreement,
    write_package,
)
from dmq_fx.lowering.rewrite import rewrite

LAYERS = {
    "image": nn.Conv2d(1, 8, 3, padding=1),
    "line": nn.Conv1d(1, 8, 3, padding=1),
    "volume": nn.Conv3d(1, 8, (3, 1, 3), padding=(1, 0, 1)),
}


class OneChannel(nn.Module):
    """Convolutions of the sample's first channel, in one to three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(LAYERS)

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, ...]:
        x = sample[:, :1] * (1.0 + timestep // 1000).reshape(-1, 1, 1, 1)
        return tuple(layer(VIEWS[view](x)) for view, layer in self.layers.items())


@needs_vnni
@pytest.mark.slow
def test_images_of_one_channel(tmp_path: Path) -> None:
    """Their strides are those of both layouts, and the kernel's output has one; code of other numbers is refused."""
    fake = converted(grouped(traced(OneChannel()), (W8, BY_TIMESTEP)))
    program = copy_of(fake)
    parts = rewrite(program, torch.float32)
    assert parts.time is not None
    extra = parts.time(example_inputs(program.traced)[1][:1])
    write_package(tmp_path, parts.body, program.traced, extra, {})
    native = LoweredModule(program.traced, load_package(tmp_path)[0], parts.time)
    for batch in (1, 3):
        given = inputs(500.0, batch)
        for found, expected in zip(native(*given), fake.graph_module(*given), strict=True):
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    body, tensors = fold_packed_weights(parts.body), (*random_inputs(program.traced), *extra)
    require_agreement(tmp_path, body, tensors)
    with pytest.raises(BackendError, match=r"does not compute what its graph does: relative error [0-9.]+") as refused:
        require_agreement(tmp_path, lambda *given: [-value for value in body(*given)], tensors)
    assert "--no-compile" in str(refused.value.hint)
