"""`overlays:`: what a recipe does differently for some models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dmq_fx.recipe.build import build
from dmq_fx.recipe.language import When
from dmq_fx.recipe.normal import write_out
from dmq_fx.recipe.schema import OWN_KEYS
from dmq_fx.recipe.tree import Node


@dataclass(frozen=True)
class ModelFacts:
    """What the conditions of an overlay are compared with. parameters: number of the denoiser's weights."""

    model_class: str
    component: str
    parameters: int


@dataclass(frozen=True)
class Overlay:
    """Keys that stand over a file's own where `when` holds. tree: in normal form, with the file's own name."""

    when: When
    tree: Node
    where: str

    def applies(self, model: ModelFacts) -> bool:
        """All conditions that are given hold for `model`."""
        when = self.when
        return (
            (not when.model_class or model.model_class in when.model_class)
            and (not when.component or model.component in when.component)
            and (when.min_parameters is None or model.parameters >= when.min_parameters)
            and (when.max_parameters is None or model.parameters <= when.max_parameters)
        )


def overlays_of(tree: Node, pass_options: Mapping[str, type]) -> tuple[Overlay, ...]:
    """The overlays of a checked file, in its order."""
    listed = tree.get("overlays")
    own = {key: node for key, node in tree.items() if key in OWN_KEYS}
    found = []
    for entry in listed.entries() if listed else ():
        layer = entry.without("when")
        for key, node in own.items():
            layer = layer.with_key(key, node, tree.keys[key])
        when = write_out(entry.at(["when"]), pass_options, When)
        found.append(Overlay(build(when, When, {}), layer, str(entry.where)))
    return tuple(found)
