"""Figures of the papers' kind from an artifact, by matplotlib or plotly.

outliers(inspect_artifact("out/w4a8"), "mid_block.resnets.0.conv1").savefig("outliers.png")
trajectory_error({"W4A8": a, "DMQ": b}, backend="plotly").show()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmq_fx.errors import DmqError
from dmq_fx.inspection.inspected import Inspected
from dmq_fx.inspection.records import channel_records, range_records, trajectory_records
from dmq_fx.inspection.text import visible
from dmq_fx.inspection.viz import need

BACKENDS = ("matplotlib", "plotly")


@dataclass(frozen=True)
class Curve:
    """One line of a panel. filled: down to zero. dashed: a limit rather than a measurement."""

    name: str
    x: Sequence[Any]
    y: Sequence[Any]
    filled: bool = False
    dashed: bool = False
    step: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot of a figure."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False
    reversed: bool = False


def outliers(found: Inspected, site: str, *, backend: str = "matplotlib") -> Any:
    """Largest |x| by input channel of a site's input and weight, before and after scaling: the outliers that scaling
    moves (figures of SmoothQuant and DMQ). Raises DmqError where no statistics were kept."""
    records = _some(channel_records(found, site), found)
    panels = []
    for kind, what in (("input", "input"), ("weight", "weight")):
        if kind not in records[0]:
            continue
        x = [record["channel"] for record in records]
        curves = [Curve("before scaling", x, [record[kind] for record in records], filled=True, step=True)]
        after = [record[f"{kind}_scaled"] for record in records]
        if after != curves[0].y:
            curves.append(Curve("after scaling", x, after, step=True))
        panels.append(Panel(f"{what} of {visible(site)}", "input channel", "largest |x|", tuple(curves)))
    return draw(panels, backend)


def timestep_ranges(found: Inspected, site: str, *, backend: str = "matplotlib") -> Any:
    """Range of a site's input at every timestep, after scaling, and what its integers reach there. Raises DmqError
    where no statistics were kept."""
    records = _some(range_records(found, site), found)
    x = [record["slot"] if record["timestep"] is None else record["timestep"] for record in records]
    curves = [
        Curve(name, x, [record[key] for record in records], dashed=dashed)
        for name, key, dashed in (
            ("smallest", "scaled_low", False),
            ("largest", "scaled_high", False),
            ("integers from", "quantized_low", True),
            ("integers to", "quantized_high", True),
        )
        if records[0][key] is not None
    ]
    return draw([Panel(f"input of {visible(site)}", "timestep", "value", tuple(curves), reversed=True)], backend)


def trajectory_error(
    found: Inspected | Mapping[str, Inspected], *, kind: str = "trajectory_mse", backend: str = "matplotlib"
) -> Any:
    """Mean squared error by sampler step, a line an artifact (by the names of a mapping).

    kind: `trajectory_mse` (of the state), `prediction_mse` or `prediction_mse_same_input`. Raises DmqError for an
    artifact that has none.
    """
    several = {found.recipe["name"]: found} if isinstance(found, Inspected) else dict(found)
    curves = []
    for name, one in several.items():
        records = [record for record in trajectory_records(one) if record.get(kind) is not None]
        _some(records, one)
        curves.append(Curve(visible(name), [r["step"] for r in records], [r[kind] for r in records]))
    title = "error along the sampler"
    return draw([Panel(title, "sampler step", kind.replace("_", " "), tuple(curves), logarithmic=True)], backend)


def _some(records: list[dict[str, Any]], found: Inspected) -> list[dict[str, Any]]:
    if not records:
        raise DmqError(
            "this artifact keeps nothing to draw that from",
            where=str(found.path),
            hint="; ".join(found.missing) or "the site has none of it",
        )
    return records


def draw(panels: Sequence[Panel], backend: str = "matplotlib", *, share_y: bool = False) -> Any:
    """Panels side by side, as a figure of `backend`; raises DmqError for one that is unknown or not installed."""
    if backend not in BACKENDS:
        raise DmqError(f"unknown backend {backend!r} of a figure", hint=f"known: {', '.join(BACKENDS)}")
    return (_matplotlib if backend == "matplotlib" else _plotly)(panels, share_y)


def _matplotlib(panels: Sequence[Panel], share_y: bool) -> Any:
    """A Figure of its own, which no window belongs to: nothing global is touched."""
    figure = need("matplotlib.figure").Figure(figsize=(5.6 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=share_y)[0], panels, strict=True):
        for curve in panel.curves:
            style = {"linestyle": "--" if curve.dashed else "-", "label": _literal(curve.name), "linewidth": 1.2}
            (line,) = axes.plot(curve.x, curve.y, drawstyle="steps-mid" if curve.step else "default", **style)
            if curve.filled:
                step = "mid" if curve.step else None
                axes.fill_between(curve.x, 0, curve.y, step=step, alpha=0.2, color=line.get_color())
        axes.set(title=_literal(panel.title), xlabel=panel.x, ylabel=panel.y)
        axes.title.set_fontsize(9)
        if panel.logarithmic:
            axes.set_yscale("log")
        if panel.reversed:
            axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _literal(text: str) -> str:
    """A name that matplotlib takes for no formula and no hidden label."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def _plotly(panels: Sequence[Panel], share_y: bool) -> Any:
    objects = need("plotly.graph_objects")
    figure = need("plotly.subplots").make_subplots(
        rows=1, cols=len(panels), shared_yaxes=share_y, subplot_titles=[_escaped(panel.title) for panel in panels]
    )
    for column, panel in enumerate(panels, 1):
        for curve in panel.curves:
            line = {"dash": "dash" if curve.dashed else "solid", "shape": "hvh" if curve.step else "linear"}
            fill = "tozeroy" if curve.filled else "none"
            trace = objects.Scatter(x=curve.x, y=curve.y, name=_escaped(curve.name), mode="lines", line=line, fill=fill)
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text=panel.x, autorange="reversed" if panel.reversed else True, row=1, col=column)
        figure.update_yaxes(title_text=panel.y, type="log" if panel.logarithmic else "linear", row=1, col=column)
    return figure


def _escaped(text: str) -> str:
    """plotly reads a few tags in text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
