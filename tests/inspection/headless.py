"""A headless browser, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or sync_playwright is None,
    reason="no Chromium on the path" if CHROMIUM is None else "playwright is not installed",
)


class Watched:
    """A page, and what it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.console: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda said: self.console.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.console.append("error: a dialog"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def errors(self) -> list[str]:
        """What the console said, but for remarks of the graphics driver."""
        return [line for line in self.console if "GL Driver Message" not in line and "WebGL" not in line]


@contextmanager
def browser() -> Iterator[Any]:
    """A function that opens a page of a width (and colour scheme)."""
    assert sync_playwright is not None
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened(width: int = 1280, scheme: str = "light") -> Watched:
            context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            return Watched(context.new_page())

        yield opened
        chromium.close()
