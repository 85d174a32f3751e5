"""Versions of the packages that decide what a compile gives."""

from __future__ import annotations

from importlib.metadata import version

PACKAGES = ("dmq-fx", "torch", "torchao", "diffusers")


def package_versions() -> dict[str, str]:
    """Installed version of each, without local tags such as `+cpu`."""
    return {name: version(name).partition("+")[0] for name in PACKAGES}
