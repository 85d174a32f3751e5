"""Recipe and sites to plan: the first rule that matches a site decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import fx

from dmq_fx.errors import RecipeError, did_you_mean
from dmq_fx.numerics.weights import scale_shape
from dmq_fx.planning.batch_axis import batch_multiple
from dmq_fx.planning.plan import Plan, PlannedSite
from dmq_fx.recipe.language import ActivationSpec, Match, Recipe, Rule, Scheme, WeightSpec
from dmq_fx.recipe.matching import first_match, matches
from dmq_fx.recipe.problems import RecipeErrors
from dmq_fx.sites import Site
from dmq_fx.tracing import TracedModel

STATIC_INPUT = "static_range: the input does not follow the batch, so it has one range for all timesteps"
NO_TIMESTEP = "static_range: the model has no timestep input"


def make_plan(recipe: Recipe, sites: Sequence[Site], traced: TracedModel) -> Plan:
    """Decide every site; raises RecipeError for a rule that matches nothing, or a scheme that does not fit a site."""
    _check_rules(recipe.rules, sites)
    nodes = {node.name: node for node in traced.graph.nodes}
    planned = tuple(_plan_site(recipe, site, traced, nodes) for site in sites)
    _check_shared_weights(planned)
    return Plan(planned, sum(parameter.numel() for parameter in traced.graph_module.parameters()))


def _plan_site(recipe: Recipe, site: Site, traced: TracedModel, nodes: Mapping[str, fx.Node]) -> PlannedSite:
    found = first_match(recipe.rules, site)
    index, rule = found if found else (None, None)
    name = rule.scheme if rule else "none"
    scheme = Scheme() if name == "none" else recipe.schemes[name]
    weight = scheme.weight if site.weight else None
    activation, notes = _activation(scheme.activation, site, traced, nodes[site.node])
    if weight is not None:
        _check_fit(site, weight, rule)
    passes = tuple(spec.name for spec in recipe.passes)
    if rule is not None and rule.passes is not None:
        passes = tuple(name for name in passes if name in rule.passes)
    if weight is None and activation is None:
        name, passes = "none", ()
    where = rule.where if rule else None
    return PlannedSite(site, index, name, weight, activation, passes, notes, where)


def _activation(
    spec: ActivationSpec | None, site: Site, traced: TracedModel, node: fx.Node
) -> tuple[ActivationSpec | None, tuple[str, ...]]:
    if spec is None or not spec.per_timestep:
        return spec, ()
    if traced.timestep is None:
        return replace(spec, per_timestep=False), (NO_TIMESTEP,)
    if all(batch_multiple(node.args[index], traced) for index in site.operands):
        return spec, ()
    return replace(spec, per_timestep=False), (STATIC_INPUT,)


def _check_fit(site: Site, weight: WeightSpec, rule: Rule | None) -> None:
    try:
        scale_shape(site.shape, weight)
    except RecipeError as error:
        where = rule.where if rule else None
        raise RecipeError(f"site {site.name!r}: {error.message}", where=where, hint=error.hint) from None


def _check_rules(rules: Sequence[Rule], sites: Sequence[Site]) -> None:
    """A rule must match a site, and must not be shadowed by its own file; a child's rules may shadow a parent's.

    All rules that do not are told at once.
    """
    taken: dict[str, Rule] = {}
    wrong: list[RecipeError] = []
    for rule in rules:
        matched = [site for site in sites if matches(rule.match, site)]
        fresh = [site for site in matched if site.name not in taken]
        for site in fresh:
            taken[site.name] = rule
        if fresh or rule.optional:
            continue
        if matched:
            earlier = taken[matched[0].name].where
            if _file(earlier) != _file(rule.where):
                continue
            message = f"this rule decides nothing: all {len(matched)} sites it matches are taken by earlier rules"
            hint = f"{matched[0].name!r}, the first of them, went to the rule at {earlier}; put this one before it"
        else:
            message = f"this rule matches no site of the model: {_described(rule.match)}"
            listing = "`dmq plan ptq/w8a8` with the same --model lists the sites"
            hint = f"{_what_exists(rule, sites)}; {listing}; say `optional: true` if that is meant"
        wrong.append(RecipeError(message, where=rule.where, hint=hint))
    if len(wrong) > 1:
        raise RecipeErrors(tuple(wrong), source=_file(wrong[0].where or ""))
    if wrong:
        raise wrong[0]


def _check_shared_weights(planned: Sequence[PlannedSite]) -> None:
    """Sites that share a weight share its integers."""
    first: dict[str, PlannedSite] = {}
    for site in planned:
        other = first.setdefault(site.site.weight or site.name, site)
        if other.weight != site.weight:
            raise RecipeError(
                f"sites {other.name!r} and {site.name!r} share one weight and would give it two precisions",
                where=site.rule_where or other.rule_where,
                hint="match both with one rule",
            )


def _file(where: str) -> str:
    """The file of a place `file:line:column`."""
    return where.rsplit(":", 2)[0]


def _what_exists(rule: Rule, sites: Sequence[Site]) -> str:
    roles = sorted({role for site in sites for role in site.roles})
    ops = sorted({site.op for site in sites})
    absent = [role for role in rule.match.role if role not in roles]
    if absent:
        return f"no site has the role {', '.join(absent)}; roles of this model: {', '.join(roles)}"
    absent = [op for op in rule.match.op if op not in ops]
    if absent:
        return f"no site computes {', '.join(absent)}; operations of this model: {', '.join(ops)}"
    if not sites:
        return "the model has no sites"
    near = [hint for pattern in rule.match.name if (hint := did_you_mean(pattern, _globs(sites)))]
    return near[0].removesuffix("?") if near else f"{len(sites)} sites were tried, such as {sites[0].name!r}"


def _globs(sites: Sequence[Site]) -> set[str]:
    """Names of sites, and `prefix.*` for every module that holds some."""
    parts = [site.name.split(".") for site in sites]
    return {site.name for site in sites} | {
        ".".join((*names[:depth], "*")) for names in parts for depth in range(1, len(names))
    }


def _described(match: Match) -> str:
    """The conditions of a match in the words of a recipe."""
    given = {key: value for key, value in vars(match).items() if value not in ((), None)}
    texts = [
        f"{key}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in given.items()
    ]
    return "; ".join(texts) or "it takes every site, and there is none"
