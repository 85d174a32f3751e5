"""What version 1 of the language means does not change: digests of library recipes and locks, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dmq_fx.pass_api import PASSES
from dmq_fx.recipe import resolve

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def real_passes() -> Mapping[str, type]:
    return {name: entry.Options for name, entry in PASSES}


@pytest.mark.parametrize(
    ("reference", "digest"),
    [  # as they were before version 2 of the language; they change with defaults of the language or of a pass only
        ("ptq/w4a8@1.0.0", "efc89fa603cfdbe6a4cd19f5c72f226101a6381618eb344ce29d8f1df50bcb4f"),
        ("dmq/w4a8@1.0.0", "060741c093fcf3caad2112d8c025200d0d962e5033de15e62e04f5d69f16a2cc"),
    ],
)
def test_digests_of_library_recipes(reference: str, digest: str, real_passes: Mapping[str, type]) -> None:
    assert resolve(reference, pass_options=real_passes).digest == digest


def test_a_lock_of_the_first_release_is_read(real_passes: Mapping[str, type]) -> None:
    """Written before locks said which file they were made from."""
    resolved = resolve(GOLDEN / "w4a8-2026.lock.yaml", pass_options=real_passes)
    assert resolved.digest == "efc89fa603cfdbe6a4cd19f5c72f226101a6381618eb344ce29d8f1df50bcb4f"
    assert [(parent.name, parent.version, parent.origin) for parent in resolved.parents] == [
        ("ptq/base", "1.0.0", None)
    ]
    assert (resolved.file, resolved.params, resolved.conditional) == (None, {}, False)


def test_a_dollar_in_a_text_of_version_1_is_a_dollar(folder: Path, pass_options: Mapping[str, type]) -> None:
    (folder / "r.yaml").write_text(
        'dmq: 1\nname: a/b\ncalibration: {prompts: ["${HOME} $${x} ${", b]}\nrules: [{scheme: none}]\n'
    )
    resolved = resolve("r.yaml", pass_options=pass_options)
    assert resolved.recipe.calibration.prompts == ("${HOME} $${x} ${", "b")
    assert resolved.document["calibration"]["prompts"] == ["${HOME} $${x} ${", "b"]
