"""The one matcher: which rule of a recipe takes a site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from dmq_fx.recipe.language import Match, Rule
from dmq_fx.sites import Site

REGEX_PREFIX = "re:"


def first_match(rules: Sequence[Rule], site: Site) -> tuple[int, Rule] | None:
    """The first rule that takes `site`, with its index; None if there is none."""
    return next(((index, rule) for index, rule in enumerate(rules) if matches(rule.match, site)), None)


def matches(match: Match, site: Site) -> bool:
    """All conditions that `match` gives hold for `site`; a condition with several values holds if any of them does.

    A site without weights (a product of activations) has no shape and no channels, so conditions on them fail.
    """
    return (
        (not match.name or any(name_matches(pattern, site.name) for pattern in match.name))
        and (not match.op or site.op in match.op)
        and (not match.role or not set(match.role).isdisjoint(site.roles))
        and (not match.shape or _shape_matches(match.shape, site.shape))
        and _channels_match(match, site)
    )


def name_matches(pattern: str, name: str) -> bool:
    """`pattern` takes the dotted module name `name`.

    A glob, case-sensitive, in which `*` also crosses dots; or `re:` and a regular expression that must fit the
    whole name.

    >>> name_matches("down_blocks.*.conv1", "down_blocks.0.resnets.1.conv1")
    True
    >>> name_matches(r"re:down_blocks\\.[0-9]+\\.conv1", "down_blocks.0.resnets.1.conv1")
    False
    """
    if pattern.startswith(REGEX_PREFIX):
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    return fnmatchcase(name, pattern)


def _shape_matches(pattern: tuple[str | int, ...], shape: tuple[int, ...]) -> bool:
    return len(pattern) == len(shape) and all(
        wanted in ("*", size) for wanted, size in zip(pattern, shape, strict=True)
    )


def _channels_match(match: Match, site: Site) -> bool:
    """Input channels are `weight_shape[1]`: for a grouped convolution, those of one group."""
    if match.min_channels is None and match.max_channels is None:
        return True
    if len(site.shape) < 2:
        return False
    channels = site.shape[1]
    low = match.min_channels is None or channels >= match.min_channels
    return low and (match.max_channels is None or channels <= match.max_channels)
