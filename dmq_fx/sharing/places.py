"""Where things of the user's are: the user's own recipes, the cache, the list of remotes, the trusted keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import platformdirs


@dataclass(frozen=True)
class Places:
    """library: the user's recipes, `family/name@version.yaml`; cache: what was fetched; remotes: the list of remotes;
    trusted: keys whose signatures count, in OpenSSH's format of allowed signers."""

    library: Path
    cache: Path
    remotes: Path
    trusted: Path


def user_places() -> Places:
    """The user's folders, by the platform's conventions."""
    config = platformdirs.user_config_path("dmq")
    return Places(
        library=platformdirs.user_data_path("dmq") / "recipes",
        cache=platformdirs.user_cache_path("dmq") / "recipes",
        remotes=config / "remotes.json",
        trusted=config / "trusted_signers",
    )
