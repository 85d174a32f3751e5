"""References to library recipes."""

from __future__ import annotations

import pytest
from packaging.version import Version

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.versions import parse_reference

VERSIONS = [Version(text) for text in ("0.1.0", "0.1.5", "0.2.0", "1.0.0", "1.2.3", "1.3.0", "2.0.0", "2.1.0rc1")]


@pytest.mark.parametrize(
    ("wanted", "newest"),
    [
        ("", "2.0.0"),
        ("@1.2.3", "1.2.3"),
        ("@2.1.0rc1", "2.1.0rc1"),
        ("@^1", "1.3.0"),
        ("@^1.0.0", "1.3.0"),
        ("@^0.1", "0.1.5"),
        ("@^0", "0.2.0"),
        ("@^0.0.3", None),
        ("@>2,<3", "2.1.0rc1"),  # nothing but a pre-release will do
        ("@~1.2", "1.2.3"),
        ("@~1.2.4", None),
        ("@~1", "1.3.0"),
        ("@>=1,<2", "1.3.0"),
        ("@ >= 1.0, < 1.3", "1.2.3"),
        ("@==1.*", "1.3.0"),
        ("@~=1.2", "1.3.0"),
        ("@^3", None),
    ],
)
def test_the_newest_version_that_will_do(wanted: str, newest: str | None) -> None:
    reference = parse_reference(f"ptq/w8a8{wanted}")
    assert reference.name == "ptq/w8a8"
    assert reference.newest(VERSIONS) == (Version(newest) if newest else None)


@pytest.mark.parametrize("wanted", ["", "1", "1.0", "^", "^x", "~1.2.3.4", "latest", "^1.0.0rc1", ">=x", "1.0.0.x"])
def test_what_is_not_a_version(wanted: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_reference(f"a/b@{wanted}", where="r.yaml:3:1")
    assert str(caught.value) == (
        f"r.yaml:3:1: {wanted!r} in 'a/b@{wanted}' is not a version\n"
        "  hint: write a version as 1.0.0, ^1, ~1.2 or >=1,<2"
    )
