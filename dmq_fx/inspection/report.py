"""`dmq inspect --html`: an artifact as one page (`dmq_fx.inspection.page`)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dmq_fx.inspection.inspected import Inspected
from dmq_fx.inspection.page import render_page, write_page
from dmq_fx.inspection.scheme_text import decibels_text, fold_text, scheme_text, size_text
from dmq_fx.inspection.summary import by_role, sizes, statistics_json, title
from dmq_fx.inspection.text import visible

COLUMNS = (
    ("name", "site", False),
    ("op", "op", False),
    ("roles", "roles", False),
    ("scheme", "scheme", False),
    ("folds", "folds", False),
    ("sqnr", "dB", True),
    ("bytes", "kB", True),
    ("bops", "GBOPs", True),
)
PLOTS = (
    ("input-channels", "Input: largest |x| by channel"),
    ("input-histogram", "Input: distribution (logarithmic)"),
    ("weight-channels", "Weight: largest |w| by input channel"),
    ("weight-histogram", "Weight: distribution (logarithmic)"),
    ("ranges", "Input range by timestep, and what its integers reach"),
    ("errors", "SQNR of the output by timestep"),
)


def write_report(path: str | Path, found: Inspected, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page about `rows` of an artifact; raises DmqError if it cannot be written, or plotly is missing."""
    return write_page(path, report_html(found, rows))


def report_html(found: Inspected, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page's text."""
    return render_page(
        "report",
        report_data(found, rows),
        title=visible(title(found)),
        recipe=found.recipe,
        model=found.model,
        digest=found.manifest.digest,
        created_by=found.manifest.created_by,
        missing=found.missing,
        cards=_cards(found),
        roles=by_role(found.rows),
        passes=found.report["passes"],
        samples=_samples(found),
        rows=[
            {**row, "scheme_text": scheme_text(row, found.slots), "fold_text": fold_text(row["folds"])} for row in rows
        ],
        site_count=len(found.rows),
        role_names=sorted({role for row in rows for role in row["roles"]}),
        op_names=sorted({row["op"] for row in rows}),
        columns=COLUMNS,
        plots=PLOTS,
        lock=visible_lines(found.lock_path.read_text("utf-8")),
    )


def report_data(found: Inspected, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the page's plots are drawn from."""
    errors = found.errors
    curves = ("trajectory_mse", "prediction_mse", "prediction_mse_same_input")
    return {
        "timesteps": found.timesteps,
        "errors": {name: errors[name] for name in curves if name in errors},
        "sites": [_site(found, row) for row in rows],
    }


def _site(found: Inspected, row: Mapping[str, Any]) -> dict[str, Any]:
    name, errors = row["name"], found.errors
    site: dict[str, Any] = {
        "name": visible(name),
        "sqnr": row["sqnr_db"],
        "facts": [[label, visible(value)] for label, value in site_facts(found, row) if value],
        "local": errors.get("local_sqnr_db", {}).get(name),
        "accumulated": errors.get("accumulated_sqnr_db", {}).get(name),
    }
    if found.statistics is not None:
        known = statistics_json(found.statistics.of(name), digits=3)
        site |= {"input": known["input"], "weight": known["weight"], "quantized": known["quantized_range"]}
    return site


def site_facts(found: Inspected, row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of a site, as (what, text)."""
    statistics = found.statistics
    ranks = [] if statistics is None else [(kind, statistics.kurtosis_rank(kind, row["name"])) for kind in _KINDS]
    return [
        ("operation", f"{row['op']} {'×'.join(map(str, row['shape']))}".strip()),
        ("roles", ", ".join(row["roles"])),
        ("scheme", f"{scheme_text(row, found.slots)} ({row['scheme']})"),
        ("rule", f"{row['rule']} of {found.lock_path.name}" if row["rule"] else ""),
        ("passes", ", ".join(row["passes"])),
        ("folds", fold_text(row["folds"])),
        ("size", size_text(row["bytes"])),
        ("SQNR of the output", decibels_text(row["sqnr_db"])),
        ("SQNR of the weight", decibels_text(row["weight_sqnr_db"])),
        *((f"kurtosis of the {kind}", f"rank {rank[0]} of {rank[1]} (1: the largest)") for kind, rank in ranks if rank),
        ("notes", "; ".join(row["notes"])),
    ]


_KINDS = ("input", "weight")


def _cards(found: Inspected) -> list[tuple[str, str, str]]:
    totals, counted = found.report["totals"], sizes(found)

    def share(size: int | None) -> str:
        return (
            "not counted by an older dmq" if size is None else f"{size / totals['full_precision_bytes']:.1%} of float32"
        )

    return [
        ("sites quantized", f"{totals['quantized_sites']} of {totals['sites']}", ""),
        ("bits a weight", f"{totals['mean_weight_bits']:.2f}", "mean over the weights of all sites"),
        (
            "size, paper's",
            size_text(counted["paper"]) or "–",
            f"all at the bits of most; {share(counted['paper'])}",
        ),
        (
            "size, honest",
            size_text(counted["honest"]),
            f"with all that is stored; {share(counted['honest'])}",
        ),
        ("size, on disk", size_text(counted["tensors"]), f"model.safetensors; {share(counted['tensors'])}"),
        ("full precision", size_text(counted["full_precision"]), "float32"),
        (
            "bit operations",
            f"{totals['bops'] / 1e9:.1f} G",
            f"{totals['bops'] / totals['full_precision_bops']:.1%} of float32",
        ),
        (
            "timesteps",
            str(len(found.timesteps)) if found.timesteps else "–",
            "with ranges of their own where a scheme says so",
        ),
    ]


def _samples(found: Inspected) -> list[tuple[str, str]]:
    """Images of full precision and of the quantized model, as data URLs."""
    images = found.statistics.images if found.statistics is not None else {}
    if len(images) < 2:
        return []
    return [(_png(a), _png(b)) for a, b in zip(images["full_precision"], images["quantized"], strict=True)]


def _png(image: np.ndarray) -> str:
    """image: uint8 [channels, height, width]."""
    pixels = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    written = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def visible_lines(text: str) -> str:
    """`text` with control characters spelled out, line by line."""
    return "\n".join(visible(line) for line in text.splitlines())
