"""A model's size as papers count it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmq_fx.planning.plan import Plan


def paper_bytes(plan: Plan) -> int:
    """Every parameter of the denoiser at the bits of the body."""
    return round(plan.parameters * body_bits(plan) / 8)


def body_bits(plan: Plan) -> float:
    """Mean bits of the weights of the scheme that has most of the parameters: what papers call a model's bits."""
    weighted = {planned.site.weight: planned for planned in plan.sites if planned.site.weight}.values()
    held: Counter[str] = Counter()
    for planned in weighted:
        held[planned.scheme] += planned.site.parameters
    if not held:
        return 32.0
    body = [planned for planned in weighted if planned.scheme == held.most_common(1)[0][0]]
    total = sum(planned.site.parameters for planned in body)
    return sum(planned.site.parameters * planned.weight_bits for planned in body) / total
