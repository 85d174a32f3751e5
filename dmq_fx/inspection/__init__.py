"""What a compile made of a model, to look at: rows, trees and tables, reports, differences, figures.

    from dmq_fx.inspection import inspect_artifact, site_records, outliers

    found = inspect_artifact("out/w4a8")
    pandas.DataFrame(site_records(found))
    outliers(found, "mid_block.resnets.0.conv1").savefig("outliers.png")

Reading an artifact needs no torch. Figures need the extra `viz`.
"""

from __future__ import annotations

from dmq_fx.inspection.figures import outliers, timestep_ranges, trajectory_error
from dmq_fx.inspection.inspected import Inspected, inspect_artifact
from dmq_fx.inspection.records import (
    channel_records,
    error_records,
    range_records,
    site_records,
    trajectory_records,
)
from dmq_fx.inspection.rows import artifact_rows, filter_rows, select, site_rows
from dmq_fx.inspection.table import kernel_lines, ranking_table, site_table, site_table_html
from dmq_fx.inspection.tree import site_tree

__all__ = [
    "Inspected",
    "artifact_rows",
    "channel_records",
    "error_records",
    "filter_rows",
    "inspect_artifact",
    "kernel_lines",
    "outliers",
    "range_records",
    "ranking_table",
    "select",
    "site_records",
    "site_rows",
    "site_table",
    "site_table_html",
    "site_tree",
    "timestep_ranges",
    "trajectory_error",
    "trajectory_records",
]
