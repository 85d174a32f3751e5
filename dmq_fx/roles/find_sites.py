"""The sites of a traced model, with their roles."""

from __future__ import annotations

from collections import Counter

from torch import fx

from dmq_fx.errors import InternalError
from dmq_fx.roles.attention import attention_out_sites, attention_products, attention_qkv_sites
from dmq_fx.roles.concat import skip_concat_sites, skip_concats, skip_connection_sites
from dmq_fx.roles.dataflow import DataFlow, data_flow
from dmq_fx.roles.embedding import conditioning_sites, modulation_sites, time_embedding_sites
from dmq_fx.roles.operations import Operation, macs, pads
from dmq_fx.roles.position import downsample_sites, first_sites, last_site, upsample_sites
from dmq_fx.roles.residual import block_in_sites, block_out_sites, feed_forward_sites, residual_blocks
from dmq_fx.roles.values import module_path, shape
from dmq_fx.sites import ROLES, Site
from dmq_fx.tracing.traced import TracedModel


def find_sites(traced: TracedModel) -> tuple[Site, ...]:
    """Every site of the graph in execution order, with roles found from the data flow."""
    flow = data_flow(traced)
    splits = skip_concat_sites(flow, skip_concats(flow))
    roles = node_roles(flow)
    calls: Counter[str] = Counter()
    sites = []
    for node, operation in flow.operations.items():
        name = _name(operation)
        suffix = f"@{calls[name]}" if calls[name] else ""
        calls[name] += 1
        sites.append(
            Site(
                name=name + suffix,
                op=operation.kind,
                node=node.name,
                roles=tuple(role for role in ROLES if node in roles[role]),
                operands=operation.operands,
                weight=_target(operation.weight),
                bias=_target(operation.bias),
                weight_shape=shape(operation.weight) if operation.weight is not None else None,
                macs=macs(operation, flow.batch),
                pads=pads(operation),
                split=splits.get(node),
            )
        )
    return tuple(sites)


def node_roles(flow: DataFlow) -> dict[str, set[fx.Node]]:
    """For each role the nodes that have it."""
    concats = skip_concats(flow)
    products = attention_products(flow)
    time_embedding = time_embedding_sites(flow)
    blocks = residual_blocks(flow)
    qkv, out = attention_qkv_sites(flow, products), attention_out_sites(flow, products)
    found = {
        "first": first_sites(flow),
        "last": last_site(flow),
        "skip_concat": set(skip_concat_sites(flow, concats)),
        "skip_connection": skip_connection_sites(flow, concats),
        "time_embedding": time_embedding,
        "conditioning": conditioning_sites(flow, time_embedding),
        "attention_qkv": qkv,
        "attention_out": out,
        "attention_matmul": products,
        "feed_forward": feed_forward_sites(flow, blocks, qkv),
        "upsample": upsample_sites(flow),
        "downsample": downsample_sites(flow),
        "modulation": modulation_sites(flow, time_embedding),
        "block_in": block_in_sites(flow, blocks, qkv | out),
        "block_out": block_out_sites(flow, blocks, qkv | out),
    }
    if set(found) != set(ROLES):
        raise InternalError(f"the roles found and those declared differ: {set(found) ^ set(ROLES)}")
    return found


def _name(operation: Operation) -> str:
    """The module of a weighted op is its parameter's owner; a product is named after the module that computes it."""
    if operation.weight is not None:
        return str(operation.weight.target).removesuffix(".weight")
    path = module_path(operation.node)
    return f"{path}.{operation.kind}" if path else operation.kind


def _target(node: fx.Node | None) -> str | None:
    return str(node.target) if node is not None else None
