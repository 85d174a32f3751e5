"""Lets the tests of this folder import `tests/architectures/catalog.py` as `catalog`, and `expected.py`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "architectures"), str(Path(__file__).parent)]
