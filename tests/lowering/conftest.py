"""Lets the tests of this folder import `small_programs.py` and `tests/architectures/catalog.py`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "architectures")]
