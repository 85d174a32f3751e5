"""A plan says what passes that choose bits will do: mean bits, sizes by them, and a note at every site of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

import dmq_fx
from dmq_fx.planning import Plan
from dmq_fx.planning.paper_size import body_bits

RECIPE = """\
dmq: 1
name: test/expected
extends: mpq-dm/base@^1
schemes:
  body: {{weight: {{bits: {bits}}}}}
passes: [{passes}]
"""


def plan_of(tmp_path: Path, model: Path, bits: int, passes: str) -> Plan:
    path = tmp_path / "expected.yaml"
    path.write_text(RECIPE.format(bits=bits, passes=passes))
    return dmq_fx.plan(path, model=str(model))


def notes_of(plan: Plan, name: str) -> set[str]:
    """Notes of the sites whose weights the pass allocates; all others have none."""
    assert not any(note.startswith("allocated_bits") for p in plan.sites if name not in p.passes for note in p.notes)
    return {note for p in plan.for_pass(name) if p.weight for note in p.notes}


@pytest.mark.parametrize(
    ("bits", "options", "note"),
    [
        (3, "{}", "allocated_bits: omq gives output channels 2 to 4 bits, 3 on average"),
        (3, "{candidates: [0]}", None),
        (2, "{candidates: [0], extra: 0.25}", "allocated_bits: omq gives output channels 2 to 3 bits, 2.25 on average"),
    ],
)
def test_of_omq(tmp_path: Path, pipeline_folder: Path, bits: int, options: str, note: str | None) -> None:
    plan = plan_of(tmp_path, pipeline_folder, bits, f"omq: {options}")
    assert notes_of(plan, "omq") == ({note} if note else set())
    same = plan_of(tmp_path, pipeline_folder, bits, "")
    assert (plan.totals == same.totals) is ("extra" not in options)
    for planned in plan.for_pass("omq"):
        channels = planned.site.shape[0]
        more = int(0.25 * channels) if "extra" in options else 0
        assert planned.weight_bits == pytest.approx(bits + more / channels)
        row = planned.site.parameters // channels
        assert planned.integer_bytes == -(-row * (bits * channels + more) // 8)


def test_of_hawq_with_mean_bits(tmp_path: Path, pipeline_folder: Path) -> None:
    plan = plan_of(tmp_path, pipeline_folder, 3, "hawq: {candidates: [2, 4], budget: {bits: 2.5}}")
    assert notes_of(plan, "hawq") == {"allocated_bits: hawq gives layers 2/4 bits within 2.5 bits a weight"}
    assert {planned.weight_bits for planned in plan.for_pass("hawq")} == {2.5}
    assert body_bits(plan) == 2.5
    same = plan_of(tmp_path, pipeline_folder, 3, "hawq: {candidates: [2, 4]}")
    assert same.totals == plan_of(tmp_path, pipeline_folder, 3, "").totals
    parameters = sum(planned.site.parameters for planned in plan.for_pass("hawq"))
    saved = same.totals.bytes - plan.totals.bytes
    assert saved == pytest.approx(parameters * 0.5 / 8, abs=len(plan.sites))


def test_of_hawq_with_another_budget(tmp_path: Path, pipeline_folder: Path) -> None:
    plan = plan_of(tmp_path, pipeline_folder, 3, "hawq: {candidates: [2, 4], budget: {megabytes: 12.5}}")
    (note,) = notes_of(plan, "hawq")
    assert note.endswith("2/4 bits within 12.5 MB; sizes here are those of the scheme's bits")
    assert plan.totals == plan_of(tmp_path, pipeline_folder, 3, "").totals
