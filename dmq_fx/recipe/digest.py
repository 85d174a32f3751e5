"""The digest of a recipe: SHA-256 of its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of `document` as JSON with sorted keys and no spaces; a `lock:` block does not count."""
    recipe = {key: value for key, value in document.items() if key != "lock"}
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
