"""The recipe language as data: what a resolved recipe is, with every default written out.

The dataclasses are the single source: the JSON Schema, the parser and `docs/recipes.md` derive from their
fields, types, limits and `help` texts. `X | None` is written as `none` in a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dmq_fx.budget import DEFAULT_BUDGET, DIVISORS
from dmq_fx.sites import OPS, ROLES

LANGUAGE_VERSIONS = (1, 2)
"""Versions of the language that are read. A version stays readable for ever; `dmq recipe migrate` writes the newest.

2: `${...}` in a text is a parameter (and `$${` the text), `params`, `overlays`, several parents, named rules.
"""

LANGUAGE_VERSION = LANGUAGE_VERSIONS[-1]

METRICS = (
    "weight_megabytes",
    "megabytes",
    "trajectory_mse",
    "final_mse",
    "final_psnr",
    "mean_weight_bits",
    "bops",
    "backend_parity",
)
"""What a compile measures, and `expect:` can set limits to."""

RECIPE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63}){1,2}"
RECIPE_VERSION = r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-?(a|b|rc)\.?[0-9]{1,9})?"
SCHEME_NAME = r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}"
RULE_NAME = r"[A-Za-z][A-Za-z0-9_-]{0,63}"
PARAM_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"


def option(help: str, *, default: Any = ..., factory: Any = ..., **limits: Any) -> Any:
    """A dataclass field with a help text and limits; a field without a help text is not part of the language.

    Limits: `choices`, `minimum`, `maximum`, `exclusive_minimum`, `exclusive_maximum`, `pattern` of a value or of a
    list's items; `min_items` of a list; `keys` (the known ones) or `key_pattern` of a mapping. `omit=True`: leaving
    the key out is a value of its own, so a resolved recipe leaves it out too. `since`: the version of the language
    that has the key, if not the first.
    """
    metadata = {"help": help, **limits}
    if factory is not ...:
        return field(default_factory=factory, metadata=metadata)
    if default is not ...:
        return field(default=default, metadata=metadata)
    return field(metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class WeightSpec:
    """How the weights of a site become integers."""

    bits: int = option("bits of an integer", minimum=2, maximum=8)
    symmetric: bool = option("no zero point: integers are centred on 0", default=True)
    granularity: str = option(
        "what shares a scale", default="per_channel", choices=("per_tensor", "per_channel", "per_group")
    )
    group_size: int = option("inputs that share a scale (per_group only)", default=64, minimum=8, maximum=4096)
    range: str = option("how the range is found", default="minmax", choices=("minmax", "percentile", "mse"))
    percentile: float = option(
        "share of the values inside the range, in percent (percentile only)",
        default=99.9,
        exclusive_minimum=50.0,
        maximum=100.0,
    )


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """How the input of a site becomes integers."""

    bits: int = option("bits of an integer", minimum=2, maximum=8)
    symmetric: bool = option("no zero point: integers are centred on 0", default=False)
    granularity: str = option("what shares a scale", default="per_tensor", choices=("per_tensor",))
    range: str = option(
        "how the range is found", default="ema_minmax", choices=("minmax", "ema_minmax", "percentile", "mse")
    )
    percentile: float = option(
        "share of the values inside the range, in percent (percentile only)",
        default=99.99,
        exclusive_minimum=50.0,
        maximum=100.0,
    )
    momentum: float = option(
        "share of the old range that a batch keeps (ema_minmax only)", default=0.95, minimum=0.0, maximum=0.9999
    )
    per_timestep: bool = option("one range per sampler step, chosen inside the graph", default=False)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The precision of a site. A missing half stays in full precision."""

    weight: WeightSpec | None = option("integers of the weights, or none", default=None)
    activation: ActivationSpec | None = option("integers of the inputs, or none", default=None)


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which sites a rule takes. All given conditions must hold; a list means any of its items."""

    name: tuple[str, ...] = option(
        "globs of the module name, or `re:` and a regular expression", default=(), omit=True, min_items=1
    )
    op: tuple[str, ...] = option("what the site computes", default=(), omit=True, min_items=1, choices=OPS)
    role: tuple[str, ...] = option("what the site does in the model", default=(), omit=True, min_items=1, choices=ROLES)
    shape: tuple[str | int, ...] = option(
        "weight shape, outermost first; `*` for any size",
        default=(),
        omit=True,
        min_items=1,
        choices=("*",),
        minimum=1,
    )
    min_channels: int | None = option("at least this many input channels", default=None, omit=True, minimum=1)
    max_channels: int | None = option("at most this many input channels", default=None, omit=True, minimum=1)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A match and the scheme and passes it gives. The first rule that matches a site wins."""

    name: str | None = option(
        "name of the rule: a child's rule with this name takes its place",
        default=None,
        omit=True,
        pattern=RULE_NAME,
        since=2,
    )
    before: str | None = option(
        "stands in front of the parent's rule of this name", default=None, omit=True, pattern=RULE_NAME, since=2
    )
    after: str | None = option(
        "stands behind the parent's rule of this name", default=None, omit=True, pattern=RULE_NAME, since=2
    )
    match: Match = option("which sites", factory=Match)
    scheme: str = option("name of a scheme, or `none` for full precision")
    passes: tuple[str, ...] | None = option(
        "passes that work on these sites; all of the recipe's if left out", default=None, omit=True
    )
    optional: bool = option("matching no site is not an error", default=False)
    where: str = ""  # file:line:column, not part of the language


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The inputs that ranges and learned numbers are found on: the sampler's own."""

    sampler: str = option(
        "scheduler that drives the full-precision model; `pipeline` for the pipeline's own",
        default="pipeline",
        choices=("pipeline", "ddim", "ddpm", "dpmsolver++", "euler", "unipc"),
    )
    steps: int = option("sampler steps", default=20, minimum=1, maximum=1000)
    samples: int = option("images that are sampled", default=64, minimum=1, maximum=65536)
    batch: int = option("images a forward", default=16, minimum=1, maximum=4096)
    seed: int = option("seed of the first image; image k has seed + k", default=0, minimum=0, maximum=2**31 - 1)
    prompts: tuple[str, ...] = option("prompts, used in turn (text-to-image only)", default=())
    guidance_scale: float | None = option(
        "classifier-free guidance; `none` for the pipeline's own", default=None, minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class PassSpec:
    """One entry of the recipe's pass list: the pass and its options (a dataclass of the pass's own)."""

    name: str
    options: Any
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Limits of one measured quantity."""

    min: float | None = option("smallest value that is accepted", default=None)
    max: float | None = option("largest value that is accepted", default=None)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A resolved recipe: parents merged, overrides applied, defaults written out."""

    dmq: int = option("version of the recipe language", choices=LANGUAGE_VERSIONS)
    name: str = option("name, as `family/name` or `family/group/name`", pattern=RECIPE_NAME)
    version: str = option("semantic version of this recipe", default="0.0.0", pattern=RECIPE_VERSION)
    summary: str = option("one line of what it does", default="")
    source: str = option("where the method comes from, such as arXiv:2507.12933", default="")
    budget: str = option(
        "share of the iterations of learned passes: `full` is as their options say, by default the papers'; `standard` "
        "a fiftieth, `quick` a two-hundredth; of `lora_distill` a tenth and a fiftieth",
        default=DEFAULT_BUDGET,
        choices=tuple(DIVISORS),
    )
    calibration: Calibration = option("calibration inputs", factory=Calibration)
    schemes: dict[str, Scheme] = option("precisions by name", factory=dict, key_pattern=SCHEME_NAME)
    rules: tuple[Rule, ...] = option("which site gets which scheme; the first match wins", default=())
    passes: tuple[PassSpec, ...] = option("graph rewrites, in this order", default=())
    expect: dict[str, Gate] = option("quality gates, checked at the end of a compile", factory=dict, keys=METRICS)
    backend: str = option("lowering target that `dmq load` takes by default", default="fake_quant")
    backend_where: str = ""


@dataclass(frozen=True, kw_only=True)
class Param:
    """A value that a recipe leaves open: written `${NAME}` where it is used, given with `-p NAME=VALUE`."""

    type: str | None = option(
        "kind of the value; the default's if left out",
        default=None,
        omit=True,
        choices=("integer", "number", "boolean", "string"),
    )
    default: bool | int | float | str | None = option("the value if none is given", default=None, omit=True)
    help: str = option("one line of what it sets", default="")
    choices: tuple[int | float | str, ...] = option("the values it can have", default=(), omit=True, min_items=1)
    minimum: float | None = option("smallest value", default=None, omit=True)
    maximum: float | None = option("largest value", default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class When:
    """Which models an overlay is for. All given conditions must hold; a list means any of its items."""

    model_class: tuple[str, ...] = option(
        "class of the denoiser, such as UNet2DConditionModel", default=(), omit=True, min_items=1
    )
    component: tuple[str, ...] = option(
        "what a pipeline calls it: unet, transformer or denoiser", default=(), omit=True, min_items=1
    )
    min_parameters: int | None = option("at least this many parameters", default=None, omit=True, minimum=0)
    max_parameters: int | None = option("at most this many parameters", default=None, omit=True, minimum=0)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A recipe that another one extends, as it was when it was resolved."""

    name: str = option("name of the recipe")
    version: str = option("version of the recipe")
    sha256: str = option("SHA-256 of the recipe's file", pattern="[0-9a-f]{64}")
    origin: str | None = option(
        "`file`, `user library` or a remote's address; left out for the library that comes with dmq",
        default=None,
        omit=True,
    )


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The `lock:` block of a lock file: what a compile was made from. Written by dmq, never by hand."""

    sha256: str = option("SHA-256 of the recipe (this file without the block)", pattern="[0-9a-f]{64}")
    recipe: Parent | None = option("the recipe's own file", default=None, omit=True)
    parents: tuple[Parent, ...] = option("recipes it extends, nearest first", default=())
    params: dict[str, Any] = option("values of its parameters", factory=dict, omit=True)
    overrides: tuple[str, ...] = option("`--set` values, in order", default=())
    model: dict[str, Any] = option("fingerprint, origin and class of the model", factory=dict)
    environment: dict[str, Any] = option("versions of the packages it was compiled with", factory=dict)
    seed: int = option("seed of everything random", default=0, minimum=0)
