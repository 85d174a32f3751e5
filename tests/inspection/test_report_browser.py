"""The report as a reader meets it, in a headless Chromium: sort, filter, click, keys, dark, narrow, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from headless import Watched, browser, needs_browser

from dmq_fx.inspection import Inspected, inspect_artifact
from dmq_fx.inspection.diff import difference
from dmq_fx.inspection.diff_report import write_diff
from dmq_fx.inspection.report import write_report
from dmq_fx.inspection.sides import load_sides

pytestmark = [needs_browser, pytest.mark.slow]
Open = Callable[..., Watched]
VISIBLE = "#site-table tbody tr:not([hidden])"
PLOTS = ("input-channels", "input-histogram", "weight-channels", "weight-histogram", "ranges", "errors")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Open]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(found: Inspected, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(tmp_path_factory.mktemp("page") / "report.html", found, found.rows).as_uri()


def load(chromium: Open, address: str, **look: object) -> Watched:
    watched = chromium(**look)
    watched.page.goto(address)
    watched.page.wait_for_selector("html[data-ready]", timeout=60_000)
    return watched


def names(watched: Watched) -> list[str]:
    return watched.page.eval_on_selector_all(f"{VISIBLE} .pick", "all => all.map(one => one.textContent)")


@pytest.mark.parametrize("look", [{"width": 1280}, {"width": 390}, {"width": 1280, "scheme": "dark"}])
def test_it_opens_quietly(chromium: Open, report: str, look: dict[str, object]) -> None:
    """No errors, nothing loaded, no sideways scrolling, the worst site chosen, all plots drawn."""
    watched = load(chromium, report, **look)
    assert watched.errors == []
    assert [url for url in watched.requests if not url.startswith("data:")] == [report]
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    drawn = watched.page.eval_on_selector_all(".js-plotly-plot", "all => all.map(one => one.id)")
    assert {f"plot-{name}" for name in PLOTS} | {"plot-trajectory", "plot-heatmap"} == set(drawn)
    ground = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(13, 17, 23)" if look.get("scheme") == "dark" else "rgb(255, 255, 255)")


def test_sort(chromium: Open, report: str, found: Inspected) -> None:
    page = (watched := load(chromium, report)).page
    measured = {row["name"]: row["sqnr_db"] for row in found.rows}
    button = page.locator("#site-table th[data-key=sqnr] button")
    button.click()
    first = names(watched)
    values = [measured[name] for name in first if measured[name] is not None]
    assert values == sorted(values) and measured[first[-1]] is None
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    button.click()
    assert [measured[name] for name in names(watched)][: len(values)] == sorted(values, reverse=True)
    page.locator("#site-table th[data-key=name] button").click()
    assert names(watched) == [row["name"] for row in found.rows]


def test_filter(chromium: Open, report: str, found: Inspected) -> None:
    page = (watched := load(chromium, report)).page
    page.get_by_label("Name").fill("Conv_Shortcut")
    wanted = [row["name"] for row in found.rows if "conv_shortcut" in row["name"]]
    assert names(watched) == wanted
    assert page.locator("#shown").text_content() == f"{len(wanted)} of {len(found.rows)} sites"
    page.locator("#filter-role").select_option("skip_connection")
    assert set(names(watched)) == {n for n in wanted if "skip_connection" in found.row(n)["roles"]}
    page.get_by_label("Name").fill("")
    page.locator("#filter-role").select_option("")
    page.get_by_label("quantized only").check()
    assert len(names(watched)) == found.report["totals"]["quantized_sites"]


def test_a_site_is_shown_when_it_is_clicked(chromium: Open, report: str, found: Inspected) -> None:
    page = (watched := load(chromium, report)).page
    site = "up_blocks.0.resnets.0.conv_shortcut.decoder"
    page.get_by_role("button", name=site).click()
    assert page.locator("#site-title").text_content() == site
    assert "decoder half" in (page.locator("#site-facts").text_content() or "")
    assert page.evaluate("document.activeElement.id") == "site-title"
    traces = page.evaluate("document.getElementById('plot-input-channels').data.map(one => one.name)")
    assert traces == ["before scaling", "after: x · 2ᵏ / γ"]
    assert page.locator("tr[aria-current] .pick").text_content() == site
    other = next(row["name"] for row in found.rows if not {"gamma", "shift"} & set(row["folds"]))
    page.get_by_role("button", name=other, exact=True).click()
    assert page.evaluate("document.getElementById('plot-input-channels').data.length") == 1
    page.get_by_label("SQNR of a site's output").select_option("accumulated")
    assert watched.errors == []


def test_keys_are_enough(chromium: Open, report: str, found: Inspected) -> None:
    page = load(chromium, report).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Name").focus()
    page.keyboard.type("mid_block")
    page.locator(f"{VISIBLE} .pick").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = [row["name"] for row in found.rows if row["name"].startswith("mid_block")][1]
    assert page.locator("#site-title").text_content() == second


def test_it_prints(chromium: Open, report: str, found: Inspected) -> None:
    """On paper the whole table is there, on white, and without controls."""
    page = load(chromium, report, scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_label("Name").is_visible()
    assert page.evaluate(
        "document.querySelector('#sites .tall').scrollHeight <= document.querySelector('#sites .tall').clientHeight + 1"
    )
    assert len(page.pdf()) > 20_000


def test_a_dark_page_prints_black_on_white(chromium: Open, report: str) -> None:
    """Plots take their colours from the look of the page, and a page is still dark when a browser begins to print."""
    page = load(chromium, report, scheme="dark").page
    color = "getComputedStyle(document.querySelector('#plot-trajectory .xtick text')).fill"
    assert page.evaluate(color) == "rgb(230, 237, 243)"
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = {color}; }})")
    page.pdf()
    assert page.evaluate("window.printed") == "rgb(0, 0, 0)"
    assert page.evaluate(color) == "rgb(230, 237, 243)"


def test_a_cell_of_the_errors_chooses_its_site(chromium: Open, report: str, found: Inspected) -> None:
    page = (watched := load(chromium, report)).page
    drawn = "document.getElementById('plot-heatmap').data[0]"
    sites: list[str] = []
    for kind in ("local", "accumulated"):  # a product of activations that is not quantized has the latter alone
        page.get_by_label("SQNR of a site's output").select_option(kind)
        errors = found.errors[f"{kind}_sqnr_db"]
        sites = [row["name"] for row in found.rows if row["name"] in errors]
        assert page.evaluate(f"{drawn}.z") == [errors[name] for name in sites]
    box = page.locator("#plot-heatmap .nsewdrag").bounding_box()
    assert box is not None
    row = 14
    assert sites[row] not in found.errors["local_sqnr_db"]
    at = {"x": box["width"] / 2, "y": box["height"] * (row + 0.5) / len(sites)}
    page.locator("#plot-heatmap .nsewdrag").hover(position=at)
    page.locator("#plot-heatmap .nsewdrag").click(position=at)
    assert page.locator("#site-title").text_content() == sites[row]
    assert watched.errors == []


def test_distributions_before_and_after_can_be_compared(chromium: Open, report: str, found: Inspected) -> None:
    """Their bins are not of one width, so heights are densities: the area below each curve is one."""
    page = load(chromium, report).page
    statistics = found.statistics
    assert statistics is not None
    kind, site, pair = next(
        (kind, name, pair)
        for name in statistics.sites
        for kind, pair in (("weight", statistics.of(name).weight), ("input", statistics.of(name).input))
        if pair is not None and pair.before.limit != pair.after.limit
    )
    page.get_by_role("button", name=site, exact=True).click()
    curves = page.evaluate(f"document.getElementById('plot-{kind}-histogram').data.map(({{ y }}) => y)")
    widths = [2 * one.limit / len(one.shares) for one in (pair.before, pair.after)]
    assert [sum(curve) * width for curve, width in zip(curves, widths, strict=True)] == pytest.approx([1, 1], abs=0.02)


def test_names_do_nothing(chromium: Open, hostile: Path, tmp_path: Path) -> None:
    artifact = inspect_artifact(hostile)
    watched = load(chromium, write_report(tmp_path / "page.html", artifact, artifact.rows).as_uri())
    page = watched.page
    name = "<script>alert(1)</script>[red]x[/]\\x1b[31m\\u202e"
    page.locator(".pick").first.click()
    assert page.locator("#site-title").text_content() == name == page.locator(".pick").first.text_content()
    page.locator("#plot-heatmap .nsewdrag").hover(position={"x": 40, "y": 5})
    labels = page.locator("#plot-heatmap").text_content() or ""
    assert "<script>alert(1)</script>" in labels
    assert watched.errors == [] and page.locator("img[onerror]").count() == 0


def test_what_was_not_kept_leaves_no_empty_frames(chromium: Open, artifact: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    report = json.loads((artifact / "report.json").read_text())
    bare = inspect_artifact(
        edited(artifact, tmp_path / "a", {"inspection.safetensors": None, "report.json": {**report, "errors": {}}})
    )
    watched = load(chromium, write_report(tmp_path / "page.html", bare, bare.rows).as_uri())
    assert watched.page.locator(".panel:visible").count() == 0 and watched.errors == []
    box = watched.page.locator("#plot-trajectory").bounding_box()
    assert box is not None and box["height"] < 60
    assert watched.page.locator("#plot-trajectory").text_content() == "nothing was measured"


def test_the_page_of_a_difference(chromium: Open, folded: Path, artifact: Path, tmp_path: Path) -> None:
    page = write_diff(tmp_path / "diff.html", difference(*load_sides(str(artifact), str(folded))))
    watched = load(chromium, page.as_uri(), width=390)
    assert watched.errors == [] and [url for url in watched.requests if url.startswith("http")] == []
    assert watched.page.locator("#plot-trajectory .scatterlayer .trace").count() == 6
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ends = watched.page.eval_on_selector_all(
        ".sides td:last-child", "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert len(ends) > 20 and max(ends) <= 390  # B stands beside A, not out of sight
