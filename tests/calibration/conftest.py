"""Lets the tests of this folder import `tests/lowering/small_programs.py`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "lowering")]
