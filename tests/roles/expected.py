"""What the sites of diffusers' UNets must be, from their configs and module names: independent of the graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dmq_fx.sites import Site


def with_role(sites: Iterable[Site], role: str) -> set[str]:
    """Names of the sites that have a role."""
    return {site.name for site in sites if role in site.roles}


def matching(sites: Iterable[Site], pattern: str) -> set[str]:
    """Names of the sites whose whole name matches a pattern."""
    return {site.name for site in sites if re.fullmatch(pattern, site.name)}


def unet_splits(config: Mapping[str, Any]) -> dict[str, int]:
    """Shortcut of each up block's ResNet block and the channels of its decoder half, by diffusers' constructor."""
    channels = list(config["block_out_channels"])
    layers = config["layers_per_block"]
    splits = {}
    previous = channels[-1]
    for block, out in enumerate(reversed(channels)):
        for resnet in range(layers + 1):
            splits[f"up_blocks.{block}.resnets.{resnet}.conv_shortcut"] = previous if resnet == 0 else out
        previous = out
    return splits
