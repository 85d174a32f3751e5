"""How large a quantized model is, three ways: as papers count, honestly, and on disk.

Papers take every parameter of the denoiser at the bits of most of its weights. What has to be stored beside those
integers, and in full precision, can be several times that at 2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmq_fx.artifact.encode import CHANNEL_WIDTHS, INPUT_SCALES, SHIFTS, STATIC_SCALES, STATIC_ZERO_POINTS
from dmq_fx.artifact.tensors import narrow
from dmq_fx.planning.paper_size import paper_bytes
from dmq_fx.program.convert_activations import DERIVED, SCALES, ZERO_POINTS
from dmq_fx.program.graph_tools import get_tensor, tensor_names
from dmq_fx.program.program import Program

SCALE_BYTES, ZERO_POINT_BYTES = 4, 1
ENTRY_BYTES = 64
"""What says where a tensor lies in a file, beside its name: type, shape, offsets."""


@dataclass(frozen=True)
class Sizes:
    """Bytes. paper: all parameters at the mean bits of the body. honest: the sum of parts; parts: by kind."""

    paper: int
    parts: dict[str, int]

    @property
    def honest(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> dict[str, object]:
        """The part `sizes` of report.json; on disk it is the size of `model.safetensors` that the manifest lists."""
        return {"paper_bytes": self.paper, "honest_bytes": self.honest, "parts": self.parts}


def measure_sizes(program: Program) -> Sizes:
    """Sizes of a program whose weights are integers, from counts of what there is: not from files.

    Values in full precision have 2 bytes where half precision loses nothing, as they are stored.
    """
    weights = {p.site.weight: p for p in program.plan.sites if p.weight and p.site.weight in program.weights}
    scales = sum(planned.scales for planned in weights.values())
    points = sum(planned.scales for planned in weights.values() if planned.weight and not planned.weight.symmetric)
    ranges = sum(len(program.qparams[activation.index].scale) for activation in program.activations)
    parts = {
        "integers": sum(planned.integer_bytes for planned in weights.values()),
        "scales": scales * SCALE_BYTES,
        "zero_points": points * ZERO_POINT_BYTES,
        "activation_ranges": ranges * (SCALE_BYTES + ZERO_POINT_BYTES),
        "input_scales": sum(gamma.numel() for gamma in program.input_scales.values()) * SCALE_BYTES,
        "shifts": sum(shifts.numel() for shifts in program.shifts.values()),
        "full_precision": _full_precision(program, set(weights)),
        "index": sum(len(name) + ENTRY_BYTES for name in _names(program)),
    }
    return Sizes(paper_bytes(program.plan), parts)


def _names(program: Program) -> list[str]:
    """Names of the tensors that are stored: as `encode_tensors` gives them."""
    symmetric = {name for name, weight in program.weights.items() if weight.grid.symmetric}
    names = [name for name in tensor_names(program.graph_module) if not name.startswith(f"{DERIVED}.")]
    names = [name for name in names if name.removesuffix("_zero_point") not in symmetric or name in symmetric]
    names += [p.site.weight + CHANNEL_WIDTHS for p in program.plan.sites if p.site.weight and len(p.widths) > 1]
    names += [f"{INPUT_SCALES}.{index}" for index in program.input_scales]
    names += [f"{SHIFTS}.{index}" for index in program.shifts]
    static = any(not activation.spec.per_timestep for activation in program.activations)
    return [*names, *([STATIC_SCALES, STATIC_ZERO_POINTS] if static else [])]


def _full_precision(program: Program, weights: set[str | None]) -> int:
    """Bytes of the tensors that the graph reads as they are."""
    counted = {f"{weight}{part}" for weight in weights for part in ("", "_scale", "_zero_point")}
    counted |= {SCALES, ZERO_POINTS}
    names = [n for n in tensor_names(program.graph_module) if n not in counted and not n.startswith(f"{DERIVED}.")]
    return sum(narrow(get_tensor(program.graph_module, name)).nbytes for name in names)
