"""The page: one file, everything in it, names as text."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from dmq_fx.errors import DmqError
from dmq_fx.inspection import Inspected, inspect_artifact, viz
from dmq_fx.inspection.page import write_page
from dmq_fx.inspection.report import report_html, write_report

LIMIT = 5_000_000
"""Bytes of a page about a model of 400 sites."""


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)


def unpacked(page: str, name: str) -> str:
    found = re.search(rf'id="{name}">([^<]*)<', page)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


@pytest.fixture(scope="module")
def page(found: Inspected) -> str:
    return report_html(found, found.rows)


def test_the_page_has_everything(page: str, found: Inspected) -> None:
    text = " ".join(Page(page).words)
    for row in found.rows:
        assert row["name"] in text
    for word in (
        found.manifest.digest,
        found.recipe["digest"],
        "size, paper's",
        "skip_connection",
        "decoder half",
        "recipe.lock.yaml",
        "smoothquant",
    ):
        assert word in text
    data = json.loads(unpacked(page, "data-gz"))
    site = data["sites"][[row["name"] for row in found.rows].index("up_blocks.0.resnets.0.conv_shortcut.decoder")]
    assert site["input"]["before"]["channel_maxima"] and site["weight"]["after"]["histogram"] and site["quantized"]
    assert len(site["local"]) == len(site["accumulated"]) == len(data["timesteps"]) == 4
    assert len(data["errors"]["trajectory_mse"]) == 4
    assert sum(tag == "img" for tag, _ in Page(page).tags) == 8


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    for tag, attributes in Page(page).tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] for tag, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy is not None
        and policy.startswith("default-src 'none'; script-src 'sha256-")
        and "unsafe-inline' 'un" not in policy
    )
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    assert "@import" not in page and "url(" not in page.partition("</style>")[0]


def test_names_are_text(hostile: Path) -> None:
    found = inspect_artifact(hostile)
    page = report_html(found, found.rows)
    parsed = Page(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 4  # ours: data, plotly, two of code
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert "<script>alert(1)</script>[red]x[/]\\x1b[31m\\u202e" in " ".join(parsed.words)
    assert "</pre></script><script>alert(3)</script>" in " ".join(parsed.words)  # the prompt, in the lock
    assert "\x1b" not in page and "\u202e" not in page
    data = json.loads(unpacked(page, "data-gz"))
    assert data["sites"][0]["name"] == "<script>alert(1)</script>[red]x[/]\\x1b[31m\\u202e"
    assert data["sites"][0]["local"] or data["sites"][0]["accumulated"]


def test_the_page_of_an_artifact_without_statistics(artifact: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bare = inspect_artifact(edited(artifact, tmp_path / "a", {"inspection.safetensors": None}))
    text = " ".join(Page(report_html(bare, bare.rows)).words)
    assert "no distributions and images: compiled with --no-report" in text and "this artifact keeps no images" in text


def test_a_page_of_400_sites_is_small(folded: Path, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As large as Stable Diffusion 1.5's, with noise for statistics, which packs worse than what is measured."""
    big = inspect_artifact(edited(folded, tmp_path / "big", sd15_sized(folded)))
    assert len(big.rows) == 400 and big.statistics is not None and len(big.statistics.sites) == 400
    assert big.statistics.of("block.399.conv").input is not None
    assert len(write_report(tmp_path / "big.html", big, big.rows).read_bytes()) < LIMIT


def sd15_sized(source: Path) -> dict[str, Any]:
    """Contents of an artifact with 400 sites, 20 timesteps and images of 128 pixels."""
    random, sites, slots, bins = np.random.default_rng(0), 400, 20, 128
    table, report = (json.loads((source / name).read_text()) for name in ("quantization.json", "report.json"))
    row = next(one for one in table["sites"] if one["name"].endswith("conv_shortcut.decoder"))
    names = [f"block.{index}.conv" for index in range(sites)]
    table |= {"sites": [{**row, "name": name} for name in names], "slots": slots, "splits": [], "biases": []}
    report["timesteps"] = list(range(slots))
    for kind in ("local_sqnr_db", "accumulated_sqnr_db"):
        report["errors"][kind] = {name: random.normal(30, 5, slots).round(3).tolist() for name in names}
    count = random.choice([160, 213, 256], sites)  # 320, 640 and 1280 channels, in runs
    real = {160: 320, 213: 640, 256: 1280}
    tensors: dict[str, Any] = {}
    for kind in ("input", "weight"):
        for when in ("before", "after"):
            part = f"{kind}.{when}"
            tensors[f"{part}.channels"] = random.random(count.sum()).astype(np.float16)
            tensors[f"{part}.counts"] = random.random((sites, bins)).astype(np.float16)
            tensors[f"{part}.limit"] = tensors[f"{part}.peak"] = np.ones(sites, np.float32)
    for name in ("input.before.range", "input.after.range", "input.quantized"):
        tensors[name] = random.normal(size=(sites, slots, 2)).astype(np.float32)
    for name in ("images.full_precision", "images.quantized"):
        tensors[name] = random.integers(0, 255, (8, 3, 128, 128), np.uint8)
    facts = {
        "sites": names,
        "scaled": names,
        "channels": [real[int(n)] for n in count],
        "kurtosis": [3.0] * sites,
        "kurtosis_scaled": [3.0] * sites,
    }
    metadata = {"version": 1, "bins": bins, "sites": names, "input": facts, "weight": facts, "quantized": names}
    return {
        "quantization.json": table,
        "report.json": report,
        "inspection.safetensors": save(tensors, {"dmq": json.dumps(metadata)}),
    }


def test_a_page_that_cannot_be_written(found: Inspected, tmp_path: Path) -> None:
    with pytest.raises(DmqError, match=r"cannot write the page(.|\n)*a folder that exists"):
        write_report(tmp_path / "no" / "page.html", found, found.rows)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DmqError, match="cannot write the page"):
        write_report(tmp_path / "folder", found, found.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("path", ["", "/", ".", "a\0b"])
def test_a_path_that_no_file_has(path: str) -> None:
    with pytest.raises(DmqError, match=r"cannot write the page(.|\n)*a folder that exists"):
        write_page(path, "page")


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DmqError, match="cannot write the page: Not a directory"):
        write_page(tmp_path / "file" / "page.html", "page")
    assert (tmp_path / "file").read_text() == "kept"


def test_devices_and_links_stay_what_they_are(tmp_path: Path) -> None:
    """`--html /dev/stdout`, by root too, is no reason to put a file in its place."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_page(pipe, "page")
    assert pipe.is_fifo() and os.read(reader, 100) == b"page"
    os.close(reader)
    link.symlink_to(tmp_path / "there")
    write_page(link, "page")
    assert link.is_symlink() and (tmp_path / "there").read_text() == "page"


def test_a_page_about_some_sites_says_so(found: Inspected, page: str) -> None:
    some = " ".join(Page(report_html(found, found.rows[:3])).words)
    assert f"About 3 of {len(found.rows)} sites" in some and "the overview counts all" not in page


def test_the_extra_is_named(found: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(viz, "import_module", missing)
    with pytest.raises(DmqError, match=r"this needs jinja2(.|\n)*dmq-fx\[viz\]"):
        report_html(found, found.rows)
