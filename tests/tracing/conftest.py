"""Lets the tests of this folder import `tests/architectures/catalog.py` as `catalog`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "architectures"))
