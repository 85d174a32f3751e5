"""Several parents, rules with names and places, and overlays for some models."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import RecipeError
from dmq_fx.recipe import ModelFacts, lock_document, resolve, write_lock
from dmq_fx.recipe.dump import to_yaml
from dmq_fx.recipe.linearize import linearize
from dmq_fx.recipe.merge import merge_recipes
from dmq_fx.recipe.tree import Position, from_plain

BASE = """\
dmq: 2
name: lab/base
schemes: {body: {weight: {bits: 8}}, edge: {weight: {bits: 6}}}
rules:
  - {name: ends, match: {role: [first, last]}, scheme: none}
  - {name: attention, match: {op: attention}, scheme: none, optional: true}
  - {name: all, match: {}, scheme: body}
"""
SMALL = ModelFacts("UNet2DModel", "unet", 10_000)
LARGE = ModelFacts("UNet2DConditionModel", "unet", 2_000_000_000)


@pytest.fixture
def base(folder: Path) -> Path:
    (folder / "base.yaml").write_text(BASE)
    return folder


def schemes(path: str, pass_options: Mapping[str, type], model: ModelFacts | None = None) -> list[tuple[str, str]]:
    rules = resolve(path, pass_options=pass_options, model=model).recipe.rules
    return [(rule.name or json.dumps(rule.match.op), rule.scheme) for rule in rules]


def error_of(path: str, pass_options: Mapping[str, type]) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(path, pass_options=pass_options)
    return str(caught.value)


def child(folder: Path, rules: str, extends: str = "base.yaml", more: str = "") -> str:
    (folder / "r.yaml").write_text(f"dmq: 2\nname: lab/r\nextends: {extends}\n{more}rules:\n{rules}")
    return "r.yaml"


def test_rules_before_and_after_and_in_place(base: Path, pass_options: Mapping[str, type]) -> None:
    path = child(
        base,
        "  - {match: {op: matmul}, scheme: none}\n"
        "  - {before: all, match: {op: linear}, scheme: edge}\n"
        "  - {after: ends, match: {op: conv1d}, scheme: edge}\n"
        "  - {after: ends, match: {op: conv2d}, scheme: edge}\n"
        "  - {name: attention, match: {op: attention}, scheme: edge}\n",
    )
    assert schemes(path, pass_options) == [
        ('["matmul"]', "none"),
        ("ends", "none"),
        ('["conv1d"]', "edge"),
        ('["conv2d"]', "edge"),
        ("attention", "edge"),
        ('["linear"]', "edge"),
        ("all", "body"),
    ]
    document = resolve(path, pass_options=pass_options).document
    assert not any({"before", "after"} & set(rule) for rule in document["rules"])
    assert [rule["name"] for rule in document["rules"] if "name" in rule] == ["ends", "attention", "all"]


def test_a_named_rule_is_overridden_by_its_name(base: Path, pass_options: Mapping[str, type]) -> None:
    resolved = resolve("base.yaml", pass_options=pass_options, overrides=["rules.all.scheme=edge"])
    assert [rule.scheme for rule in resolved.recipe.rules] == ["none", "none", "edge"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            "  - {before: al, match: {op: linear}, scheme: edge}\n",
            "r.yaml:5:14: there is no rule named 'al' to stand before\n  hint: did you mean 'all'?",
        ),
        (
            "  - {after: all, match: {op: linear}, scheme: edge}\n",
            "r.yaml:5:5: this rule never applies: the rule at base.yaml:7:5 takes every site",
        ),
        (
            "  - {before: all, after: ends, match: {op: linear}, scheme: edge}\n",
            "r.yaml:5:26: a rule stands before or after another one, not both",
        ),
        (
            "  - {name: x, match: {op: linear}, scheme: edge}\n  - {name: x, match: {op: conv2d}, scheme: edge}\n",
            "r.yaml:6:12: two rules are named 'x' (first at line 5)",
        ),
        (
            "  - {name: 1x, match: {op: linear}, scheme: edge}\n",
            "r.yaml:5:12: name must be the name of a rule (letters, digits, '_' and '-'), got '1x'",
        ),
    ],
)
def test_places_that_do_not_work(base: Path, pass_options: Mapping[str, type], rules: str, message: str) -> None:
    assert message in error_of(child(base, rules), pass_options)


def test_a_place_needs_a_parent(failure: Any) -> None:
    text = "dmq: 2\nname: a/b\nrules:\n  - {before: x, match: {}, scheme: none}\n"
    assert failure(text) == "recipe.yaml:4:14: there is no rule named 'x' to stand before\n  hint: named rules: none"


def test_several_parents_and_what_they_share(base: Path, pass_options: Mapping[str, type]) -> None:
    (base / "left.yaml").write_text(
        "dmq: 2\nname: lab/left\nextends: base.yaml\ncalibration: {steps: 3, samples: 5}\n"
        "rules: [{match: {op: linear}, scheme: edge}]\n"
    )
    (base / "right.yaml").write_text(
        "dmq: 1\nname: lab/right\nextends: base.yaml\ncalibration: {steps: 4}\n"
        "rules: [{match: {op: conv2d}, scheme: edge}]\n"
    )
    (base / "r.yaml").write_text("dmq: 2\nname: lab/r\nextends: [left.yaml, right.yaml]\n")
    resolved = resolve("r.yaml", pass_options=pass_options)
    assert [parent.name for parent in resolved.parents] == [
        "lab/right",
        "lab/left",
        "lab/base",
    ]  # base once, below both
    assert (resolved.recipe.calibration.steps, resolved.recipe.calibration.samples) == (4, 5)  # the later one wins
    assert [name for name, _ in schemes("r.yaml", pass_options)] == [
        '["conv2d"]',
        '["linear"]',
        "ends",
        "attention",
        "all",
    ]


def test_a_parent_beside_others_need_not_be_whole(base: Path, pass_options: Mapping[str, type]) -> None:
    (base / "learned.yaml").write_text(
        "dmq: 2\nname: mixin/learned\npasses: [les: {iterations: 7}]\nschemes: {body: {weight: {range: mse}}}\n"
    )
    (base / "r.yaml").write_text("dmq: 2\nname: lab/r\nextends: [base.yaml, learned.yaml]\n")
    recipe = resolve("r.yaml", pass_options=pass_options).recipe
    assert recipe.schemes["body"].weight and recipe.schemes["body"].weight.range == "mse"
    assert [entry.name for entry in recipe.passes] == ["les"]
    assert "learned.yaml:1:1: the recipe has no rules" in error_of("learned.yaml", pass_options)


def test_orders_that_contradict_one_another(folder: Path, pass_options: Mapping[str, type]) -> None:
    for name, extends in (("a", ""), ("b", ""), ("x", "[a.yaml, b.yaml]"), ("y", "[b.yaml, a.yaml]")):
        text = f"dmq: 2\nname: lab/{name}\nrules: [{{match: {{op: linear}}, scheme: none}}]\n"
        (folder / f"{name}.yaml").write_text(text + (f"extends: {extends}\n" if extends else ""))
    (folder / "r.yaml").write_text("dmq: 2\nname: lab/r\nextends: [x.yaml, y.yaml]\n")
    assert "r.yaml:3:10: there is no order of parents that fits all of r.yaml, " in error_of("r.yaml", pass_options)


def test_circles_through_the_second_parent(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "a.yaml").write_text("dmq: 2\nname: lab/a\nrules: [{scheme: none}]\n")
    (folder / "b.yaml").write_text("dmq: 2\nname: lab/b\nextends: r.yaml\n")
    (folder / "r.yaml").write_text("dmq: 2\nname: lab/r\nextends: [a.yaml, b.yaml]\n")
    assert error_of("r.yaml", pass_options) == (
        "b.yaml:3:10: recipes extend one another in a circle: r.yaml -> b.yaml -> r.yaml"
    )


OVERLAYS = """\
overlays:
  - when: {model_class: UNet2DConditionModel, min_parameters: 1.0e+9}
    schemes: {body: {weight: {bits: 4}}}
    rules:
      - {before: all, match: {op: linear}, scheme: edge}
  - when: {max_parameters: 20000}
    calibration: {steps: 5}
"""


def test_overlays_stand_over_their_own_file(base: Path, pass_options: Mapping[str, type]) -> None:
    (base / "base.yaml").write_text(BASE + OVERLAYS)
    (base / "r.yaml").write_text(
        "dmq: 2\nname: lab/r\nextends: base.yaml\nschemes: {body: {weight: {symmetric: false}}}\n"
    )
    small, large = (resolve("r.yaml", pass_options=pass_options, model=model) for model in (SMALL, LARGE))
    assert (small.recipe.calibration.steps, large.recipe.calibration.steps) == (5, 20)
    bits = [found.recipe.schemes["body"].weight for found in (small, large)]
    assert [(weight.bits, weight.symmetric) for weight in bits if weight] == [(8, False), (4, False)]
    assert [name for name, _ in schemes("r.yaml", pass_options, LARGE)] == ["ends", "attention", '["linear"]', "all"]
    assert (small.overlays, large.overlays) == (("base.yaml:13:5",), ("base.yaml:9:5",))
    none = resolve("r.yaml", pass_options=pass_options)
    assert none.conditional and none.overlays == () and "overlays" not in none.document
    assert none.recipe.name == "lab/r" and len({none.digest, small.digest, large.digest}) == 3


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("{when: {}, budget: quick}", "an overlay for every model has no conditions"),
        ("{budget: quick}", "missing key 'when' in overlays[0]"),
        ("{when: {component: unet}, name: a/c}", "unknown key 'name' in overlays[0]"),
        (
            "{when: {component: unet}, budgte: quick}",
            "unknown key 'budgte' in overlays[0]\n  hint: did you mean 'budget'?",
        ),
        ("{when: {component: unet}, schemes: {body: {weight: {bits: 17}}}}", "bits must be between 2 and 8, got 17"),
        ("{when: {component: unet}, rules: [{match: {op: linear}, scheme: bdy}]}", "unknown scheme 'bdy'"),
        (
            "{when: {min_parameters: 9, max_parameters: 3}, budget: quick}",
            "min_parameters 9 is more than max_parameters 3",
        ),
    ],
)
def test_overlays_are_checked_whether_or_not_they_apply(
    base: Path, pass_options: Mapping[str, type], overlay: str, message: str
) -> None:
    (base / "base.yaml").write_text(BASE + f"overlays: [{overlay}]\n")
    assert message in error_of("base.yaml", pass_options)


NAMES = st.sampled_from("abcd")
RULES = st.lists(
    st.builds(lambda op, scheme: {"match": {"op": [op]} if op != "d" else {}, "scheme": scheme}, NAMES, NAMES),
    max_size=3,
    unique_by=lambda rule: json.dumps(rule["match"]),
)
PASS = st.builds(lambda name, key, value: {name: {key: value}}, NAMES, NAMES, st.integers(0, 3))
RECIPES = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "rules": RULES,
        "passes": st.lists(PASS, max_size=3, unique_by=lambda entry: next(iter(entry))),
        "schemes": st.dictionaries(NAMES, st.dictionaries(NAMES, st.integers(0, 3), max_size=2), max_size=2),
        "calibration": st.dictionaries(NAMES, st.integers(0, 3), max_size=3),
        "source": NAMES,
    },
)


@settings(max_examples=200, deadline=None)
@given(RECIPES, RECIPES, RECIPES)
def test_merging_is_associative(one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]) -> None:
    a, b, c = (from_plain(plain, Position("r.yaml", 1, 1)) for plain in (one, two, three))
    left = merge_recipes(merge_recipes(a, b), c).plain()
    right = merge_recipes(a, merge_recipes(b, c)).plain()
    assert left == right


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), max_size=3, unique=True), min_size=1, max_size=8))
def test_every_file_stands_once_over_its_parents(edges: list[list[int]]) -> None:
    """parents of node k: some of those after it, so that there is no circle."""
    parents = {str(k): [str(p) for p in found if k < p < len(edges)] for k, found in enumerate(edges)}
    order = linearize("0", parents)
    if order is None:  # two files want them in different orders
        return
    reached = {"0"}
    for name in parents:
        reached |= set(parents[name]) if name in reached else set()
    assert order[0] == "0" and sorted(order) == sorted(reached)
    for name in order:
        assert all(order.index(name) < order.index(parent) for parent in parents[name])
        places = [order.index(parent) for parent in parents[name]]
        assert places == sorted(places)


COMPOSED: dict[str, Any] = {
    "dmq": 2,
    "name": "lab/r",
    "extends": ["./base.yaml", "./mixin.yaml"],
    "params": {"w": {"type": "integer", "default": 4, "minimum": 2, "choices": [3, 4]}, "s": {"default": "mse"}},
    "schemes": {"body": {"weight": {"bits": "${w}", "range": "${s}"}}},
    "rules": [{"name": "x", "before": "all", "match": {"op": "linear"}, "scheme": "body", "passes": ["les"]}],
    "overlays": [{"when": {"component": "unet", "min_parameters": 1}, "rules": [{"after": "x", "scheme": "none"}]}],
    "summary": "${w} $${w}",
}
DAMAGE = (
    st.none() | st.booleans() | st.integers() | st.sampled_from(["${w}", "${", "x", "", "./base.yaml", "none", "2"])
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_composition_raises_nothing_but_recipe_errors(
    tmp_path_factory: pytest.TempPathFactory, pass_options: Mapping[str, type], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    mixin = {"dmq": 2, "name": "lab/mixin", "passes": ["les"], "params": {"w": {"default": 3}}}
    documents = {"base": yaml.safe_load(BASE), "mixin": mixin, "r": copy.deepcopy(COMPOSED)}
    target: Any = documents[data.draw(st.sampled_from(["r", "r", "mixin", "base"]))]
    while isinstance(target, (dict, list)) and target:
        parent, key = target, data.draw(st.sampled_from(list(target) if isinstance(target, dict) else [0]))
        target = target[key]
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(DAMAGE | st.lists(DAMAGE, max_size=2) | st.dictionaries(st.sampled_from("wx"), DAMAGE))
    for name, document in documents.items():
        (folder / f"{name}.yaml").write_text(to_yaml(document), encoding="utf-8")
    try:
        resolved = resolve(
            folder / "r.yaml", pass_options=pass_options, model=data.draw(st.sampled_from([None, SMALL]))
        )
    except RecipeError as error:
        assert error.where
        return
    lock = write_lock(folder / "r.lock.yaml", lock_document(resolved, model={}, environment={}, seed=0))
    again = resolve(lock, pass_options=pass_options)
    assert (again.digest, again.document) == (resolved.digest, resolved.document)
