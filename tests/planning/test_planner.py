"""Recipe and sites to plan: who wins, what it costs, and what is said when a rule fits nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import dmq_fx
from dmq_fx.errors import RecipeError
from dmq_fx.planning import Plan
from dmq_fx.recipe import problems_of

HEAD = """\
dmq: 1
name: test/recipe
schemes:
  low: {weight: {bits: 4, granularity: per_channel}, activation: {bits: 8, per_timestep: true}}
  high: {weight: {bits: 8}}
rules:
"""


def make(tmp_path: Path, pipeline_folder: Path, *rules: str) -> Plan:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(HEAD + "".join(f"  - {rule}\n" for rule in rules))
    return dmq_fx.plan(recipe, model=str(pipeline_folder))


def test_first_match_wins(tmp_path: Path, pipeline_folder: Path) -> None:
    plan = make(
        tmp_path,
        pipeline_folder,
        "{match: {name: '*.conv_shortcut'}, scheme: none}",
        "{match: {role: skip_connection}, scheme: low, optional: true}",
        "{match: {op: conv2d}, scheme: low}",
        "{match: {op: linear}, scheme: high}",
    )
    by_name = plan.by_name
    assert by_name["up_blocks.0.resnets.0.conv_shortcut"].scheme == "none"
    assert by_name["conv_in"].scheme == "low"
    assert by_name["conv_in"].rule_where == f"{tmp_path / 'r.yaml'}:9:5"
    assert by_name["mid_block.attentions.0.to_q"].scheme == "high"
    assert by_name["mid_block.attentions.0.to_q"].activation is None
    assert by_name["mid_block.attentions.0.attention"].scheme == "none"
    assert by_name["mid_block.attentions.0.attention"].rule is None


def test_totals_add_up(tmp_path: Path, pipeline_folder: Path) -> None:
    plan = make(tmp_path, pipeline_folder, "{match: {op: conv2d}, scheme: low}", "{match: {op: linear}, scheme: high}")
    totals = plan.totals
    convolutions = [p for p in plan.sites if p.site.op == "conv2d"]
    linears = [p for p in plan.sites if p.site.op == "linear"]
    weights = sum(p.site.parameters for p in convolutions + linears)
    bits = sum(p.site.parameters * 4 for p in convolutions) + sum(p.site.parameters * 8 for p in linears)
    assert totals.sites == len(plan.sites)
    assert totals.quantized_sites == len(convolutions) + len(linears)
    assert totals.quantized_parameters == weights
    assert totals.mean_weight_bits == pytest.approx(bits / weights)
    scales = sum(4 * p.site.shape[0] for p in convolutions + linears)
    packed = sum(-(-p.site.parameters * 4 // 8) for p in convolutions) + sum(p.site.parameters for p in linears)
    assert totals.bytes == packed + scales + 4 * (plan.parameters - weights)
    conv_in = plan.by_name["conv_in"]
    assert conv_in.site.macs == 16 * 3 * 9 * 16 * 16
    assert conv_in.bops == conv_in.site.macs * 4 * 8
    assert plan.by_name["time_embedding.linear_1"].bops == 16 * 64 * 8 * 32


def test_rule_that_matches_nothing_names_what_exists(tmp_path: Path, pipeline_folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        make(
            tmp_path, pipeline_folder, "{match: {role: modulation}, scheme: low}", "{match: {op: conv2d}, scheme: low}"
        )
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'r.yaml'}:7:5: this rule matches no site of the model")
    assert "no site has the role modulation; roles of this model: " in text
    assert "first" in text and "optional: true" in text


def test_all_rules_that_match_nothing_are_told_with_what_is_near(tmp_path: Path, pipeline_folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        make(
            tmp_path,
            pipeline_folder,
            "{match: {name: 'up_block.*', op: conv2d}, scheme: low}",
            "{match: {op: conv2d}, scheme: low}",
            "{match: {min_channels: 4096}, scheme: low}",
        )
    first, second = problems_of(caught.value)
    place = tmp_path / "r.yaml"
    assert first.where == f"{place}:7:5" and second.where == f"{place}:9:5"
    assert first.message == "this rule matches no site of the model: name: up_block.*; op: conv2d"
    assert (first.hint or "").startswith("did you mean 'up_blocks.*'")
    assert second.message.endswith(": min_channels: 4096") and "sites were tried" in (second.hint or "")
    assert str(caught.value).startswith(f"{place}: 2 errors\n")


def test_rule_that_matches_nothing_may_be_optional(tmp_path: Path, pipeline_folder: Path) -> None:
    plan = make(
        tmp_path,
        pipeline_folder,
        "{match: {role: modulation}, scheme: low, optional: true}",
        "{match: {op: conv2d}, scheme: low}",
    )
    assert plan.totals.quantized_sites > 0


def test_rule_behind_a_wider_one_of_its_file(tmp_path: Path, pipeline_folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        make(
            tmp_path,
            pipeline_folder,
            "{match: {op: [conv2d, linear]}, scheme: low}",
            "{match: {name: conv_in}, scheme: high}",
        )
    where = f"{tmp_path / 'r.yaml'}"
    assert str(caught.value) == (
        f"{where}:8:5: this rule decides nothing: all 1 sites it matches are taken by earlier rules\n"
        f"  hint: 'conv_in', the first of them, went to the rule at {where}:7:5; put this one before it"
    )


def test_groups_that_do_not_fit_name_the_site(tmp_path: Path, pipeline_folder: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        HEAD.replace("per_channel", "per_group") + "  - {match: {name: 'time_embedding.*'}, scheme: low}\n"
    )
    with pytest.raises(RecipeError) as caught:
        dmq_fx.plan(recipe, model=str(pipeline_folder))
    assert "r.yaml:7:5: site 'time_embedding.linear_1': granularity per_group with group_size 64" in str(caught.value)
    assert "does not fit a weight of shape [64, 16]" in str(caught.value)


class Positions(nn.Module):
    """Embeds positions, which are the same for every sample (as Flux's image ids are)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 4)
        self.body = nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.body(sample + self.embed(ids) + timestep[:, None, None]),)


class Twice(nn.Module):
    """Calls one layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.body(torch.relu(self.body(sample)) + timestep[:, None, None]),)


def test_one_weight_has_one_precision(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(HEAD + "  - {match: {name: body}, scheme: low}\n  - {match: {name: body@1}, scheme: high}\n")
    inputs = {"sample": torch.randn(2, 5, 4), "timestep": torch.zeros(2)}
    with pytest.raises(RecipeError, match="sites 'body' and 'body@1' share one weight"):
        dmq_fx.plan(recipe, model=Twice().eval(), inputs=inputs)


def test_input_that_does_not_follow_the_batch_is_static(tmp_path: Path) -> None:

    recipe = tmp_path / "r.yaml"
    recipe.write_text(HEAD + "  - {match: {op: linear}, scheme: low}\n")
    inputs = {"sample": torch.randn(2, 5, 4), "timestep": torch.zeros(2), "ids": torch.randn(5, 8)}
    plan = dmq_fx.plan(recipe, model=Positions().eval(), inputs=inputs)
    embed, body = plan.by_name["embed"], plan.by_name["body"]
    assert embed.activation is not None and not embed.activation.per_timestep
    assert embed.notes == ("static_range: the input does not follow the batch, so it has one range for all timesteps",)
    assert body.activation is not None and body.activation.per_timestep and body.notes == ()
