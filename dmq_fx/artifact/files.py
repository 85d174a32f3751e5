"""Names of an artifact's files; apart, so that they can be had without torch."""

from __future__ import annotations

TENSORS = "model.safetensors"
SITES = "quantization.json"
CONFIG = "config.json"
LOCK = "recipe.lock.yaml"
REPORT = "report.json"
REPORT_HTML = "report.html"
FILES = (TENSORS, SITES, CONFIG, LOCK, REPORT, REPORT_HTML)
"""What every artifact has."""

STATISTICS = "inspection.safetensors"
"""What a compile saw of every site, for inspection; not there after `--no-report`."""
