"""Which sites are shown, in which order, and in what words."""

from __future__ import annotations

from typing import Any

import pytest

from dmq_fx.errors import DmqError
from dmq_fx.inspection import Inspected, select
from dmq_fx.inspection.scheme_text import fold_text, scheme_text, size_text
from dmq_fx.inspection.text import visible

WEIGHT = {"bits": 4, "symmetric": False, "granularity": "per_channel", "group_size": 64}
ACTIVATION = {"bits": 8, "symmetric": False, "granularity": "per_tensor", "per_timestep": True}


def row(name: str, sqnr: float | None, size: int | None = 10, **more: Any) -> dict[str, Any]:
    return {"name": name, "op": "conv2d", "roles": ["first"], "sqnr_db": sqnr, "bytes": size, "bops": 1, **more}


ROWS = [row("a.b", 30.0, 5), row("a.c", None, None, op="linear", roles=[]), row("d", 10.0, 7, roles=["last", "first"])]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({}, ["a.b", "a.c", "d"]),
        ({"site": "a.*"}, ["a.b", "a.c"]),
        ({"site": r"re:.\.c|d"}, ["a.c", "d"]),
        ({"role": "first"}, ["a.b", "d"]),
        ({"op": "linear"}, ["a.c"]),
        ({"sort": "sqnr"}, ["d", "a.b", "a.c"]),
        ({"sort": "size"}, ["d", "a.b", "a.c"]),
        ({"worst": 5}, ["d", "a.b"]),
        ({"worst": 1, "sort": "size"}, ["d"]),
        ({"worst": 1, "role": "first", "site": "a*"}, ["a.b"]),
    ],
)
def test_select(asked: dict[str, Any], names: list[str]) -> None:
    assert [one["name"] for one in select(ROWS, **asked)] == names


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"site": "a.bb"}, "no site matches 'a.bb'\n  hint: did you mean 'a.b'?"),
        ({"site": "re:("}, "'re:(' is no regular expression"),
        ({"role": "firsst"}, "no site has the role 'firsst'\n  hint: did you mean 'first'?"),
        ({"op": "matmul"}, "there are: conv2d, linear"),
        ({"sort": "name"}, "cannot sort by 'name'"),
        ({"site": "a.*", "role": "last"}, "no site fits --site a.* and --role last at once"),
        ({"worst": 3, "op": "linear"}, "none of these sites has a number to sort by sqnr"),
    ],
)
def test_select_says_what_there_is(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(DmqError) as error:
        select(ROWS, **asked)
    assert message in str(error.value)


def test_scheme_text() -> None:
    both = {"weight": WEIGHT, "activation": ACTIVATION}
    assert scheme_text(both, 20) == "W4 per-channel asym · A8 per-tensor asym ×20 slots"
    assert scheme_text(both) == "W4 per-channel asym · A8 per-tensor asym by timestep"
    grouped = {"weight": {**WEIGHT, "granularity": "per_group", "symmetric": True}, "activation": None}
    assert scheme_text(grouped, 20) == "W4 per-group 64 sym"
    assert scheme_text({"weight": None, "activation": None}) == "full precision"


def test_fold_text() -> None:
    folds = {"gamma": {"min": 0.8123, "max": 1.4, "in": "norm"}, "shift": {"max": 3, "share": 0.121, "in": "weights"}}
    more = {"split": "decoder", "bias": "corrected", "zero_point": [0, 137]}
    assert fold_text(folds | more) == (
        "γ 0.812…1.4 in norm · 2^k ≤ 3 (12% of channels) in weights · decoder half · bias corrected · z 0…137"
    )
    assert fold_text({"zero_point": [128, 128]}) == "z 128" and fold_text({}) == fold_text(None) == ""


def test_sizes_and_control_characters() -> None:
    assert (size_text(999), size_text(2_500_000), size_text(None)) == ("1.0 kB", "2.50 MB", "")
    assert visible("a\x1b[31m\n\u202eb\x9b") == r"a\x1b[31m\n\u202eb\x9b" and visible("γ …×") == "γ …×"


def test_rows_of_an_artifact_say_what_was_done(found: Inspected) -> None:
    rows = {one["name"]: one for one in found.rows}
    half = rows["up_blocks.0.resnets.0.conv_shortcut.decoder"]["folds"]
    assert half["split"] == "decoder" and half["shift"]["in"] == "activation" and 0 <= half["shift"]["max"] <= 3
    assert (
        half["gamma"]["min"] < 1 < half["gamma"]["max"] and 0 <= half["zero_point"][0] <= half["zero_point"][1] <= 255
    )
    places = {one["folds"]["gamma"]["in"] for one in found.rows if "gamma" in one["folds"]}
    assert places <= {"norm", "quantize"} and "quantize" in places
    quantized = [one for one in found.rows if one["weight"]]
    assert all(one["bops"] == one["macs"] * one["weight"]["bits"] * 8 for one in quantized if one["scheme"] == "body")
    assert found.missing == ()
