"""Roles of what does not depend on the noisy sample: `time_embedding`, `conditioning`; and `modulation`.

`time_embedding` is every site that makes or projects the vector which conditions all blocks: its input is the timestep,
or a vector (class, pooled text, size) that joins the timestep's before either meets the sample. It includes the
blocks' own projections (`time_emb_proj`, adaLN linears); those whose output *scales* features are `modulation` too.
The timestep's MLP is no modulation, even where a last layer scales with the embedding itself (PixArt, Sana, Wan).
`conditioning` is every other site that depends on the conditioning input alone: projections of text, and the keys and
values of cross-attention.
"""

from __future__ import annotations

from torch import fx

from dmq_fx.roles.dataflow import DataFlow
from dmq_fx.roles.values import aten, is_arithmetic, is_rearrangement, packet


def time_embedding_sites(flow: DataFlow) -> set[fx.Node]:
    """Sites on vectors that depend on the timestep, or join one that does, and never on the sample."""
    found = set()
    for node, operation in flow.operations.items():
        vector = operation.weighted and not flow.on_sample(node) and flow.is_vector(node)
        if vector and (flow.depends(node) & flow.timestep or _joins_timestep(flow, node)):
            found.add(node)
    return found


def conditioning_sites(flow: DataFlow, time_embedding: set[fx.Node]) -> set[fx.Node]:
    """Sites that depend neither on the sample nor on the timestep, and are no part of the time embedding."""
    other = flow.sample | flow.timestep
    return {
        node
        for node, operation in flow.operations.items()
        if operation.weighted and not flow.depends(node) & other and node not in time_embedding
    }


def modulation_sites(flow: DataFlow, time_embedding: set[fx.Node]) -> set[fx.Node]:
    """Last sites of the time embedding whose output, cut into parts, multiplies features: scales and gates."""
    ends = {node for node in time_embedding if not any(flow.is_ancestor(node, other) for other in time_embedding)}
    return {node for node in ends if _scales_features(flow, node)}


def _joins_timestep(flow: DataFlow, site: fx.Node) -> bool:
    """A vector computed from the site depends on the timestep, before any of it meets the sample."""

    def through(node: fx.Node) -> bool:
        product = node in flow.operations and not flow.operations[node].weighted
        return not flow.on_sample(node) and flow.is_vector(node) and not product

    return any(through(node) and flow.depends(node) & flow.timestep for node in flow.forward(site, through))


def _scales_features(flow: DataFlow, site: fx.Node) -> bool:
    vector = flow.depends(site)

    def is_part(node: fx.Node) -> bool:
        """Still the vector: moved, cut, or with constants and parameters added."""
        within = not flow.depends(node) & ~vector
        return within and (is_rearrangement(node) or is_arithmetic(node))

    for node in flow.forward(site, is_part):
        if packet(node) in (aten.mul, aten.addcmul) and any(_is_feature(flow, arg) for arg in node.all_input_nodes):
            return True
    return False


def _is_feature(flow: DataFlow, node: fx.Node) -> bool:
    """Features are made from the sample, or from a sequence of conditioning tokens in a joint stream."""
    from_conditioning = bool(flow.depends(node) & ~flow.timestep) and not flow.is_vector(node)
    return flow.on_sample(node) or from_conditioning
