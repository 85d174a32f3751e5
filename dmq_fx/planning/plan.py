"""What a recipe makes of a model, before anything is computed: an immutable table of sites."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from dmq_fx.planning.paper_size import paper_bytes
from dmq_fx.recipe.language import ActivationSpec, WeightSpec
from dmq_fx.sites import Site

FULL_PRECISION_BITS = 32


def index_bits(widths: int) -> int:
    """Bits that say which of `widths` widths a channel has; 0 if there is one."""
    return (widths - 1).bit_length()


@dataclass(frozen=True)
class PlannedSite:
    """A site and what is to be done to it.

    rule: which rule decided, by its position in the resolved recipe; None if no rule matched.
    rule_where: where that rule stands, as `file:line:column`.
    passes: recipe passes that work on this site. notes: typed reasons for what differs from the recipe.
    widths: (bits, output channels that have them), ascending, where a pass allocated bits; else empty.
    expected_bits: mean bits of the weights that a pass will allocate, before it has; None if none will.
    """

    site: Site
    rule: int | None
    scheme: str
    weight: WeightSpec | None
    activation: ActivationSpec | None
    passes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rule_where: str | None = None
    widths: tuple[tuple[int, int], ...] = ()
    expected_bits: float | None = None

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def quantized(self) -> bool:
        return self.weight is not None or self.activation is not None

    @property
    def weight_bits(self) -> float:
        """Bits of a weight, the mean of them where output channels differ, or will."""
        if self.weight is None:
            return FULL_PRECISION_BITS
        if self.widths:
            mean = sum(bits * channels for bits, channels in self.widths) / sum(channels for _, channels in self.widths)
        else:
            mean = float(self.weight.bits if self.expected_bits is None else self.expected_bits)
        return int(mean) if mean.is_integer() else mean

    @property
    def widest_bits(self) -> int:
        """Bits of the integers that the graph holds: those of the widest channel."""
        assert self.weight is not None
        return max((bits for bits, _ in self.widths), default=self.weight.bits)

    @property
    def activation_bits(self) -> int:
        return self.activation.bits if self.activation else FULL_PRECISION_BITS

    @property
    def bytes(self) -> int:
        """Bytes of the weights: packed integers with scales, zero points and channels' bits, or full precision."""
        if self.weight is None:
            return self.site.parameters * FULL_PRECISION_BITS // 8
        per_scale = 4 if self.weight.symmetric else 5
        return self.integer_bytes + self.scales * per_scale

    @property
    def integer_bytes(self) -> int:
        """Bytes of the packed integers, and of what says how many bits each channel has."""
        assert self.weight is not None
        if not self.widths:
            return ceil(self.site.parameters * self.weight_bits / 8)
        channels = self.site.shape[0]
        row = self.site.parameters // channels
        packed = sum((bits * count * row + 7) // 8 for bits, count in self.widths)
        return packed + (channels * index_bits(len(self.widths)) + 7) // 8

    @property
    def bops(self) -> int:
        """Bit operations for one sample: multiply-accumulates x weight bits x activation bits."""
        if self.site.weight is None:
            return self.site.macs * self.activation_bits**2
        return round(self.site.macs * self.weight_bits * self.activation_bits)

    @property
    def scales(self) -> int:
        """How many scales the weight has."""
        assert self.weight is not None
        if self.weight.granularity == "per_tensor":
            return 1
        if self.weight.granularity == "per_channel":
            return self.site.shape[0]
        return self.site.parameters // self.weight.group_size

    def to_json(self) -> dict[str, Any]:
        """The row that `dmq plan --json` prints."""
        return {
            "name": self.name,
            "op": self.site.op,
            "roles": list(self.site.roles),
            "shape": list(self.site.shape),
            "scheme": self.scheme,
            "weight_bits": self.weight_bits if self.site.weight else None,
            "activation_bits": self.activation_bits,
            "weight": asdict(self.weight) if self.weight else None,
            "activation": asdict(self.activation) if self.activation else None,
            "passes": list(self.passes),
            "rule": self.rule_where,
            "widths": [list(pair) for pair in self.widths],
            "bytes": self.bytes,
            "macs": self.site.macs,
            "bops": self.bops,
            "split": self.site.split,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Totals:
    """Sums over a plan. Bytes are estimates of what the artifact's tensors take; per sample where it says so.

    paper_bytes: as papers count them: every parameter at the bits of most weights.
    """

    sites: int
    quantized_sites: int
    parameters: int
    quantized_parameters: int
    mean_weight_bits: float
    bytes: int
    paper_bytes: int
    full_precision_bytes: int
    macs: int
    bops: int
    full_precision_bops: int


@dataclass(frozen=True)
class Plan:
    """The table site -> scheme and passes. `parameters` counts every parameter of the denoiser."""

    sites: tuple[PlannedSite, ...]
    parameters: int

    @property
    def by_name(self) -> dict[str, PlannedSite]:
        return {planned.name: planned for planned in self.sites}

    def for_pass(self, name: str) -> tuple[PlannedSite, ...]:
        """Quantized sites that the pass called `name` works on."""
        return tuple(planned for planned in self.sites if planned.quantized and name in planned.passes)

    @property
    def needs_calibration(self) -> bool:
        return any(planned.activation for planned in self.sites)

    @property
    def totals(self) -> Totals:
        weighted = list({planned.site.weight: planned for planned in self.sites if planned.site.weight}.values())
        of_sites = sum(planned.site.parameters for planned in weighted)
        rest = self.parameters - of_sites
        bits = sum(planned.site.parameters * planned.weight_bits for planned in weighted)
        return Totals(
            sites=len(self.sites),
            quantized_sites=sum(planned.quantized for planned in self.sites),
            parameters=self.parameters,
            quantized_parameters=sum(planned.site.parameters for planned in weighted if planned.weight),
            mean_weight_bits=bits / of_sites if of_sites else float(FULL_PRECISION_BITS),
            bytes=sum(planned.bytes for planned in weighted) + rest * FULL_PRECISION_BITS // 8,
            paper_bytes=paper_bytes(self),
            full_precision_bytes=self.parameters * FULL_PRECISION_BITS // 8,
            macs=sum(planned.site.macs for planned in self.sites),
            bops=sum(planned.bops for planned in self.sites),
            full_precision_bops=sum(planned.site.macs for planned in self.sites) * FULL_PRECISION_BITS**2,
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq plan --json` prints."""
        return {"sites": [planned.to_json() for planned in self.sites], "totals": asdict(self.totals)}
