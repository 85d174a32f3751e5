"""Tables for pandas and figures of the papers' kind, by both libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import DmqError
from dmq_fx.inspection import (
    Inspected,
    channel_records,
    error_records,
    inspect_artifact,
    outliers,
    range_records,
    site_records,
    timestep_ranges,
    trajectory_error,
    trajectory_records,
)

SITE = "up_blocks.0.resnets.0.conv_shortcut.encoder"


def test_records_are_flat_and_complete(found: Inspected) -> None:
    sites = site_records(found)
    assert [one["site"] for one in sites] == [row["name"] for row in found.rows]
    half = next(one for one in sites if one["site"] == SITE)
    assert half["split"] == "encoder" and half["weight_bits"] == 4 and half["input_kurtosis"] > 0
    assert half["input_peak_scaled"] != half["input_peak"]
    for records in (
        sites,
        error_records(found),
        range_records(found, SITE),
        channel_records(found, SITE),
        trajectory_records(found),
    ):
        assert records and all(one.keys() == records[0].keys() for one in records)
        assert all(isinstance(value, (str, int, float, type(None))) for one in records for value in one.values())
    errors = [one for one in error_records(found) if one["site"] == SITE]
    assert [one["timestep"] for one in errors] == found.timesteps
    assert [one["local_sqnr_db"] for one in errors] == found.errors["local_sqnr_db"][SITE]


def test_matplotlib_figures(found: Inspected, tmp_path: Path) -> None:
    figure = outliers(found, SITE)
    assert [axes.get_xlabel() for axes in figure.axes] == ["input channel", "input channel"]
    before, after = figure.axes[0].lines
    records = channel_records(found, SITE)
    assert list(before.get_ydata()) == [one["input"] for one in records]
    assert list(after.get_ydata()) == [one["input_scaled"] for one in records]
    ranges = timestep_ranges(found, SITE).axes[0]
    assert [line.get_linestyle() for line in ranges.lines] == ["-", "-", "--", "--"] and ranges.xaxis_inverted()
    curve = trajectory_error({"a": found, "_b$": found})
    assert curve.axes[0].get_yscale() == "log"
    assert [text.get_text() for text in curve.axes[0].get_legend().get_texts()] == ["a", r" _b\$"]
    curve.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_plotly_figures(found: Inspected) -> None:
    figure = outliers(found, SITE, backend="plotly")
    assert [trace.name for trace in figure.data] == ["before scaling", "after scaling"] * 2
    curve = trajectory_error({"<b>x</b>": found}, kind="prediction_mse", backend="plotly")
    assert list(curve.data[0].y) == found.errors["prediction_mse"] and curve.layout.yaxis.type == "log"
    assert curve.data[0].name == "&lt;b&gt;x&lt;/b&gt;"
    assert timestep_ranges(found, SITE, backend="plotly").layout.xaxis.autorange == "reversed"


def test_figures_say_what_they_need(found: Inspected, artifact: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DmqError, match="unknown backend 'bokeh'"):
        outliers(found, SITE, backend="bokeh")
    with pytest.raises(DmqError, match="no site is called"):
        outliers(found, "nowhere")
    bare = inspect_artifact(edited(artifact, tmp_path / "a", {"inspection.safetensors": None}))
    with pytest.raises(DmqError, match=r"keeps nothing to draw(.|\n)*--no-report"):
        outliers(bare, "conv_in")
