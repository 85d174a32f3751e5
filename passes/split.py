"""Separate quantizers for the decoder half and the encoder half of a skip concat.

Q-Diffusion (arXiv:2302.04304), section 4.3; DMQ's released scripts turn it on as well (ptq-methods 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from dmq_fx.pass_api import PASSES, PassResult
from dmq_fx.program.program import PassContext, Program
from dmq_fx.program.split import split_in_plan, why_not_split
from dmq_fx.recipe.language import option


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Options of `split`."""

    sites: str = option(
        "which sites: the residual shortcuts, or every site that reads a concat, norms and activations between",
        default="skip_connection",
        choices=("skip_connection", "skip_concat"),
    )


@PASSES.register("split")
class Split:
    """Two sites and an add in place of one site that reads a concat."""

    Options = SplitOptions
    requires: frozenset[str] = frozenset()
    ensures: frozenset[str] = frozenset()
    before = frozenset({"grouped"})

    @staticmethod
    def run(program: Program, options: SplitOptions, context: PassContext) -> PassResult:
        return rewrite(program, options)

    @staticmethod
    def foresee(program: Program, options: SplitOptions) -> None:
        """The whole pass: it needs no numbers."""
        rewrite(program, options)


def rewrite(program: Program, options: SplitOptions) -> PassResult:
    """Split the sites that can be, in place."""
    sites = tuple(planned.site for planned in program.plan.sites)
    wanted = [p for p in program.plan.for_pass("split") if options.sites in p.site.roles]
    return split_in_plan(program, {p.name: why_not_split(p.site, sites, program.traced) for p in wanted})
