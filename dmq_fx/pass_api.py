"""What a pass is: a graph rewrite with options, declared states, and a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dmq_fx.registry import Registry

if TYPE_CHECKING:
    from dmq_fx.program.program import PassContext, Program


@dataclass(frozen=True)
class PassResult:
    """What a pass did: the sites it changed, and numbers worth reporting (JSON values)."""

    modified: tuple[str, ...]
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """Where a pass stands among others: states of the program that it requires and gives, and must come before.

    conflict: what to do where an earlier pass gives what this one does, or each of both would have to come first.
    """

    requires: frozenset[str]
    ensures: frozenset[str]
    before: frozenset[str] = frozenset()
    conflict: str = "leave one of them out"


class GraphPass(Protocol):
    """A graph rewrite, with or without learned numbers.

    `Options` is a frozen dataclass whose fields are made with `dmq_fx.recipe.language.option`; the recipe
    language takes its schema and defaults from it. `requires` and `ensures` name states of the program
    ("traced", "grouped", "observed", "calibrated", "rounded", "quantized"); the compiler inserts the steps that lead
    there; "allocated" is what passes ensure that choose bits, "assigned" those that choose integers for weights,
    "bias_corrected" and "output_corrected" those that correct what all others have left. `before`, which may be left
    out, names states that must not have been reached: a pass that changes what ranges are found on comes before
    "observed". A pass whose options decide these has `order(options)`, an `Order`, in their place.
    `check(plan, options)`, which may be left out too, raises RecipeError where the plan does not suit the pass, before
    anything is computed.
    `expected_bits(plan, options)`, likewise, says of a pass that chooses bits how many each site will have on average,
    with a note, by the site's name: for `dmq plan`.
    `foresee(program, options)`, likewise, does to sites and activations of a program without weights
    what the pass will have done to them when a backend sees it: for `dmq plan --backend`.
    """

    Options: type
    requires: frozenset[str]
    ensures: frozenset[str]

    @staticmethod
    def run(program: Program, options: Any, context: PassContext) -> PassResult:
        """Rewrite `program` in place and say what was done."""
        ...


PASSES: Registry[type[GraphPass]] = Registry("pass", entry_point_group="dmq_fx.passes")
"""Passes by the name that recipes use."""


def pass_options() -> dict[str, type]:
    """The passes that a recipe may name, with the dataclasses of their options; needs no torch."""
    return {name: entry.Options for name, entry in PASSES}


def order_of(entry: type[GraphPass], options: Any) -> Order:
    """Where a pass with these options stands among others."""
    own = getattr(entry, "order", None)
    return own(options) if own else Order(entry.requires, entry.ensures, getattr(entry, "before", frozenset()))
