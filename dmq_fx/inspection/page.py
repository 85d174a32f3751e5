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

LEVEL = 7
"""Of gzip: for 400 sites a quarter of level 9's time, and 1 % more bytes of the page."""


def write_page(path: str | Path, page: str) -> Path:
    """Write a page, or leave what was there; raises DmqError if it cannot be written.

    A link, a device or a pipe (/dev/stdout) is written to and stays what it is.
    """
    target = Path(path)
    try:
        if target.is_symlink() or (target.exists() and not target.is_file()):
            target.write_text(page, encoding="utf-8")
        else:
            _replace(target, page)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        hint = "use a file in a folder that exists"
        raise DmqError(f"cannot write the page: {why}", where=str(path), hint=hint) from error
    return target


def _replace(target: Path, page: str) -> None:
    partial = target.with_name(f".{target.name[:100]}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


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
    packed = gzip.compress(text.encode("utf-8"), LEVEL, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
