"""Convolutions of one channel in native code: their memory order is ambiguous, and Inductor and the kernels differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_programs import BY_TIMESTEP, STATIC, W8, converted, grouped, inputs, lower, needs_vnni, traced_layers
from torch import nn

from dmq_fx.backends import x86_int8
from dmq_fx.errors import BackendError
from dmq_fx.lowering.fold import fold_packed_weights
from dmq_fx.lowering.native import load_package, random_inputs, require_agreement, write_package
from dmq_fx.lowering.parity import TOLERANCE, site_errors
from dmq_fx.recipe.language import ActivationSpec

pytestmark = needs_vnni
GREY = (
    ("grey", nn.Conv2d(1, 24, 3, padding=1)),
    ("grey", nn.Conv2d(1, 8, 3, stride=2, bias=False)),
    ("image", nn.Conv2d(6, 6, 3, padding=1, groups=6)),
)


@pytest.mark.parametrize("spec", [STATIC, BY_TIMESTEP])
def test_sites_are_those_of_fake_quantization(spec: ActivationSpec) -> None:
    pair = lower(converted(grouped(traced_layers(*GREY), (W8, spec))))
    errors = site_errors(pair.fake, pair.lowered, inputs(500))
    assert len(errors) == len(GREY) and max(errors.values()) < TOLERANCE


@pytest.mark.slow
def test_native_code_computes_what_the_graph_does(tmp_path: Path) -> None:
    """With a range by timestep, whose scales no compiler can know; any batch."""
    program = converted(grouped(traced_layers(*GREY), (W8, BY_TIMESTEP)))
    parts = x86_int8.rewrite(program, torch.float32)
    assert parts.time is not None
    extra = parts.time(torch.tensor([500]))
    write_package(tmp_path, parts.body, program.traced, extra, {})
    code, body = load_package(tmp_path)[0], fold_packed_weights(parts.body)
    for batch in (1, 2, 5):
        given = (*random_inputs(program.traced, batch), *extra)
        for found, expected in zip(code(*given), body(*given), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    require_agreement(tmp_path, body, given)
    with pytest.raises(BackendError, match=r"does not compute what its graph does: relative error [0-9.]+") as refused:
        require_agreement(tmp_path, lambda *given: [-value for value in body(*given)], given)
    assert "--no-compile" in str(refused.value.hint)
