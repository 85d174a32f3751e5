"""Fused attention as two products, so that its probabilities are quantized as well.

The methods that quantize attention products quantize queries, keys, values and the softmax between them: Q-Diffusion
(arXiv:2302.04304) and PTQ4DM (arXiv:2211.15736) among others (ptq-methods 1). A fused product has no place for the last
of these.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.split import split_in_plan
from dmq_fx.program.split_attention import why_not_written_out


@dataclass(frozen=True, kw_only=True)
class SplitAttentionOptions:
    """`split_attention` has no options: fused attention that is quantized becomes two products with its scheme."""


@PASSES.register("split_attention")
class SplitAttention:
    """Two sites with its scheme, `NAME.scores` and `NAME.values`, in place of a fused attention product."""

    Options = SplitAttentionOptions
    requires: frozenset[str] = frozenset()
    ensures: frozenset[str] = frozenset()
    before = frozenset({"grouped"})

    @staticmethod
    def run(program: Program, options: SplitAttentionOptions, context: PassContext) -> PassResult:
        return rewrite(program)

    @staticmethod
    def foresee(program: Program, options: SplitAttentionOptions) -> None:
        """The whole pass: it needs no numbers."""
        rewrite(program)


def rewrite(program: Program) -> PassResult:
    """Write out the attention of the sites that can be, in place."""
    wanted = [p for p in program.plan.for_pass("split_attention") if not p.site.weight]
    return split_in_plan(program, {p.name: why_not_written_out(p.site, program.traced) for p in wanted})
