"""What is said about a model that cannot be traced: the module and the line, nothing of torch."""

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from dmq_fx.errors import TraceError
from dmq_fx.tracing import trace


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such thing")


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), inner])

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            sample = block(sample)
        return sample


@pytest.mark.parametrize(("inner", "offset"), [(Branches, 2), (Raises, 2)])
def test_module_and_line(inner: type[nn.Module], offset: int) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Outer(inner()), {"sample": torch.ones(2, 3)})
    line = inspect.getsourcelines(inner)[1] + offset
    assert caught.value.where == f"blocks.1 ({Path(__file__)}:{line})"
    text = str(caught.value)
    assert "torch/fx" not in text
    assert len(text.splitlines()) == 2
    assert text.splitlines()[1].startswith("  hint: the model's code must not depend on the values of tensors")


def test_wrong_inputs_name_the_place_in_diffusers() -> None:
    from catalog import tiny_inputs, tiny_model

    inputs = {**tiny_inputs("sd"), "encoder_hidden_states": torch.zeros(2, 77, 5)}
    with pytest.raises(TraceError, match=r"attn2.*diffusers/models/attention_processor\.py:\d+\): cannot be traced"):
        trace(tiny_model("sd"), inputs)
