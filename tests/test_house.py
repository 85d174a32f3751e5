"""The rules of the house: imports point one way, files stay small, one import is light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = ("dmq_fx", "passes", "backends", "cli", "benchmarks", "examples", "tests")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_core_imports_neither_passes_nor_backends_nor_cli() -> None:
    outer = ("dmq_fx.passes", "dmq_fx.backends", "dmq_fx.cli")
    for path in modules("dmq_fx"):
        assert not {name for name in imports(path) if name.startswith(outer)}, path


@pytest.mark.parametrize("folder", ["passes", "backends"])
def test_passes_and_backends_import_the_core_only(folder: str) -> None:
    forbidden = ("dmq_fx.compiler", "dmq_fx.pipeline", "dmq_fx.loading", "dmq_fx.evaluation", "dmq_fx.cli")
    for path in modules(folder):
        assert not {name for name in imports(path) if name.startswith(forbidden)}, path


def test_numerics_and_program_do_not_know_the_compiler() -> None:
    for folder in ("numerics", "observers", "planning", "program", "calibration", "tracing", "roles", "models"):
        for path in modules(f"dmq_fx/{folder}"):
            assert not imports(path) & {"dmq_fx.compiler", "dmq_fx.pipeline", "dmq_fx.loading", "dmq_fx.evaluation"}, (
                path
            )


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("dmq_fx, dmq_fx.recipe, dmq_fx.cli", ["torch", "jsonschema", "dmq_fx.sharing.library"]),
        (
            "dmq_fx.pair, dmq_fx.images, dmq_fx.backends.x86_int8",
            ["torchao", "scipy", "jsonschema", "torch._inductor.lowering", "dmq_fx.program", "dmq_fx.quality"],
        ),
    ],
    ids=["recipes and commands", "sampling on kept native code"],
)
def test_what_is_imported_late(names: str, absent: list[str]) -> None:
    code = f"import sys, {names}; print(*(name for name in {absent} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.split() == []


def test_every_package_is_installed() -> None:
    """An editable install finds a folder that a wheel would leave out."""
    text = (ROOT / "pyproject.toml").read_text()
    inner = {f"dmq_fx.{path.parent.name}" for path in (ROOT / "dmq_fx").glob("*/__init__.py")}
    outer = {f"dmq_fx.{name}" for name in ("passes", "backends", "cli", "recipes", "assets")}
    assert {name for name in inner | outer if f'    "{name}",' not in text} == set()


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for folder in CODE for path in modules(folder)}
    assert {str(path): length for path, length in lengths.items() if length > 500} == {}
    own = sorted(length for path, length in lengths.items() if "tests" not in path.parts and length > 3)
    assert own[len(own) // 2] < 150


def test_no_stub_is_left() -> None:
    for folder in CODE[:6]:
        for path in modules(folder):
            text = path.read_text()
            assert "TODO" not in text and "FIXME" not in text and "XXX" not in text, path


@pytest.mark.parametrize("script", [*modules("benchmarks"), *modules("examples")], ids=lambda path: path.stem)
def test_scripts_import_what_is_there(script: Path) -> None:
    """Nothing else would notice, as most are only run by hand."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dmq_fx"):
            module = importlib.import_module(str(node.module))
            missing = [one.name for one in node.names if not hasattr(module, one.name)]
            for name in missing:
                importlib.import_module(f"{node.module}.{name}")
