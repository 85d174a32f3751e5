"""References to library recipes: a name and the versions of it that will do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from dmq_fx.errors import RecipeError
from dmq_fx.recipe.language import RECIPE_NAME

_NUMBERS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")


@dataclass(frozen=True)
class Reference:
    """`name` or `name@wanted`: `1.0.0` exactly, `^1`, `~1.2`, or specifiers such as `>=1,<2`."""

    name: str
    wanted: str
    specifiers: SpecifierSet

    @property
    def is_exact(self) -> bool:
        """It names one version."""
        return self.wanted.strip()[:1].isdigit()

    def newest(self, versions: list[Version]) -> Version | None:
        """The newest version that will do; a pre-release only if nothing else does or it is asked for."""
        return max(self.specifiers.filter(versions), default=None)


def parse_reference(text: str, where: str | None = None) -> Reference:
    """Parse a reference to a library recipe; `where` is the place of the text, for errors."""
    name, at, wanted = text.partition("@")
    if not re.fullmatch(RECIPE_NAME, name):
        hint = "a library recipe is family/name@version, a file ends in .yaml"
        raise RecipeError(f"{text!r} is neither a recipe's name nor a file", where=where, hint=hint)
    if not at:
        return Reference(name, "", SpecifierSet())
    specifiers = _specifiers(wanted.strip())
    if specifiers is None:
        hint = "write a version as 1.0.0, ^1, ~1.2 or >=1,<2"
        raise RecipeError(f"{wanted!r} in {text!r} is not a version", where=where, hint=hint)
    return Reference(name, wanted, specifiers)


def _specifiers(wanted: str) -> SpecifierSet | None:
    """
    >>> str(_specifiers("~1.2"))
    '<1.3,>=1.2'
    """
    if wanted[:1] in ("^", "~") and wanted[:2] != "~=":
        if not _NUMBERS.fullmatch(wanted[1:]):
            return None
        numbers = [int(number) for number in wanted[1:].split(".")]
        return SpecifierSet(f">={wanted[1:]},<{_caret_end(numbers) if wanted[0] == '^' else _tilde_end(numbers)}")
    try:
        # a bare version is that version, and has all three numbers so that `1` is not taken for `^1`
        if wanted[:1].isdigit():
            return SpecifierSet(f"=={wanted}") if Version(wanted) and wanted.count(".") >= 2 else None
        return SpecifierSet(wanted) if wanted else None
    except ValueError:  # InvalidSpecifier, InvalidVersion
        return None


def _caret_end(numbers: list[int]) -> str:
    """The first version that a caret leaves out: the next one of the first number that is not zero."""
    place = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
    return ".".join(map(str, [*numbers[:place], numbers[place] + 1]))


def _tilde_end(numbers: list[int]) -> str:
    """The first version that a tilde leaves out: the next minor one, or major one if only that is given."""
    place = min(1, len(numbers) - 1)
    return ".".join(map(str, [*numbers[:place], numbers[place] + 1]))
