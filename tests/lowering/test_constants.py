"""Constants of native code in a file: the same values, packed or not, and none of them copied."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from small_programs import needs_vnni
from torch import Tensor

from dmq_fx.errors import BackendError
from dmq_fx.lowering.constants import keep_constants, map_constants, save_constants
from dmq_fx.lowering.onednn import onednn

PIXELS = ([1, 1], [1, 1], [1, 1], 1)


def resident(tensor: Tensor, memory: Tensor) -> bool:
    """Whether a dense tensor lies in the mapped memory."""
    return memory.data_ptr() <= tensor.data_ptr() < memory.data_ptr() + memory.numel()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(24, dtype=torch.int64)[4:20:2],
        torch.tensor(-7, dtype=torch.int32),
        torch.tensor([True, False]),
        torch.randn(3, 5, dtype=torch.bfloat16),
        torch.randint(-128, 128, (2, 3, 4, 5), dtype=torch.int8).contiguous(memory_format=torch.channels_last),
    ],
    ids=["transposed", "every second", "scalar", "bool", "bfloat16", "channels last"],
)
def test_dense_tensors_are_mapped(tmp_path: Path, tensor: Tensor) -> None:
    save_constants(tmp_path, {"odd": torch.ones(3, dtype=torch.uint8), "it": tensor})
    found, memory = map_constants(tmp_path)
    assert list(found) == ["odd", "it"] and torch.equal(found["it"], tensor)
    assert found["it"].dtype == tensor.dtype and found["it"].stride() == tensor.stride()
    assert resident(found["it"], memory) and found["it"].data_ptr() % tensor.element_size() == 0


def test_nothing_to_keep(tmp_path: Path) -> None:
    save_constants(tmp_path, {})
    assert map_constants(tmp_path)[0] == {}
    save_constants(tmp_path, {"none": torch.empty(0, 3)})
    assert map_constants(tmp_path)[0]["none"].shape == (0, 3)


def test_what_is_written_to_them_stays_in_this_process(tmp_path: Path) -> None:
    save_constants(tmp_path, {"x": torch.zeros(4)})
    before = (tmp_path / "constants.bin").read_bytes()
    map_constants(tmp_path)[0]["x"].fill_(1.0)
    assert (tmp_path / "constants.bin").read_bytes() == before
    assert torch.equal(map_constants(tmp_path)[0]["x"], torch.zeros(4))


@needs_vnni
def test_packed_weights_are_mapped(tmp_path: Path) -> None:
    """Weights as oneDNN lays them out are used where they lie in the file."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (32, 16, 3, 3), generator=generator, dtype=torch.int8)
    scales, zeros = torch.rand(32, generator=generator), torch.zeros(32, dtype=torch.int64)
    x = torch.randint(0, 256, (2, 16, 8, 8), generator=generator, dtype=torch.uint8)
    packed = onednn.qconv_prepack(weight, scales, 1.0, 0, *PIXELS, list(x.shape))

    def convolve(weights: Tensor) -> Tensor:
        return onednn.qconv_pointwise(
            x, 0.1, 3, weights, scales, zeros, None, *PIXELS, 1.0, 0, torch.float32, "none", [], ""
        )

    save_constants(tmp_path, {"odd": torch.ones(3, dtype=torch.uint8), "packed": packed})
    found, memory = map_constants(tmp_path)
    assert found["packed"].is_mkldnn and found["packed"].shape == packed.shape
    address = torch.ops.mkldnn.data_ptr(found["packed"])
    assert memory.data_ptr() <= address < memory.data_ptr() + memory.numel() and address % 64 == 0
    assert torch.equal(convolve(found["packed"]), convolve(packed))


def test_constants_of_a_graph_are_kept_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the code computes for itself are not among them."""
    from torch._inductor.codecache import AotCodeCompiler

    class Graph:
        constants = ("weight", "folded", "scale")
        folded_constants = ("folded",)

        @staticmethod
        def get_original_value_of_constant(name: str) -> Tensor:
            return torch.full((1,), float(len(name)))

    given: list[Any] = []
    monkeypatch.setattr(
        AotCodeCompiler, "compile", classmethod(lambda cls, *args: given.append((cls, *args)) or "code")
    )
    graph: Any = Graph()
    with keep_constants() as found:
        assert AotCodeCompiler.compile(graph, "wrapper") == "code"
    assert found == {"weight": torch.tensor([6.0]), "scale": torch.tensor([5.0])}
    assert given == [(AotCodeCompiler, graph, "wrapper")]


def test_one_graph_is_compiled_at_a_time() -> None:
    inside: list[str] = []

    def other() -> None:
        with keep_constants():
            inside.append("other")

    thread = Thread(target=other)
    with keep_constants():
        thread.start()
        thread.join(0.2)
        inside.append("first")
    thread.join(10)
    assert inside == ["first", "other"]


def test_memory_that_is_no_packed_tensor(tmp_path: Path) -> None:
    save_constants(tmp_path, {"x": torch.zeros(4)})
    index = tmp_path / "constants.json"
    index.write_text('[{"name": "x", "at": 0, "bytes": 16, "dtype": "no_such", "shape": [4], "packed": [0]}]')
    with pytest.raises(BackendError, match="the weights of native code cannot be mapped") as caught:
        map_constants(tmp_path)
    assert caught.value.where == str(tmp_path / "constants.bin")


def test_keeping_constants_leaves_the_compiler_as_it_was() -> None:
    from torch._inductor.codecache import AotCodeCompiler

    before = AotCodeCompiler.__dict__["compile"]
    with pytest.raises(ZeroDivisionError), keep_constants() as found:
        assert found == {} and AotCodeCompiler.__dict__["compile"] is not before
        raise ZeroDivisionError
    assert AotCodeCompiler.__dict__["compile"] is before
