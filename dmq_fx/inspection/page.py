"""One page that needs nothing else: templates, scripts, and what is packed into it.

plotly's own bundle (4.8 MB, the only one that its package ships) and the data are gzipped into the page and unpacked by
the browser: about 2 MB instead, and no name of a site ever stands in a script. The page's security policy names its
scripts by hash and lets it load nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from dmq_fx.errors import DmqError
from dmq_fx.inspection.text import visible
from dmq_fx.inspection.viz import need


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, or leave what was there; raises DmqError if it cannot be written."""
    target = Path(path)
    partial = target.with_name(f".{target.name[:100]}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        hint = "use a file in a folder that exists"
        raise DmqError(f"cannot write the page: {error}", where=str(target), hint=hint) from error
    return target


def render_page(template: str, data: Any, **values: Any) -> str:
    """The text of a page: `TEMPLATE.html.j2` with `values`, escaped, and `TEMPLATE.js`, which `data` is unpacked for.

    data: plain JSON. Raises DmqError without the extra `viz`.
    """
    environment_of, markup = need("jinja2"), need("markupsafe").Markup
    library = need("plotly.offline").get_plotlyjs()
    base, script = _asset("base.js"), _asset(f"{template}.js")
    environment = environment_of.Environment(
        autoescape=True, undefined=environment_of.StrictUndefined, trim_blocks=True
    )
    environment.filters["visible"] = visible
    environment.filters["decibels"] = lambda value: "" if value is None else f"{value:.1f}"
    return environment.from_string(_asset(f"{template}.html.j2")).render(
        **values,
        style=markup(_asset("report.css")),
        base=markup(base),
        script=markup(script),
        script_hashes=markup(" ".join(f"'sha256-{_sha256(text)}'" for text in (base, script, library))),
        plotly=_packed(library),
        data=_packed(json.dumps(data, separators=(",", ":"), allow_nan=False)),
    )


def _asset(name: str) -> str:
    return (files("dmq_fx.inspection") / "templates" / name).read_text("utf-8")


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
