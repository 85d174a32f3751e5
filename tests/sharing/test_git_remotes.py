"""Recipes from a git repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import RemoteError
from dmq_fx.recipe import resolve
from dmq_fx.sharing.address import parse_address
from dmq_fx.sharing.git import GitSession
from dmq_fx.sharing.places import Places
from dmq_fx.sharing.remotes import Remote, add_remote

from .conftest import Make, Repository, failure, git, publish, recipe_text


def test_git_at_a_tag_and_at_a_commit(
    repository: Repository, library: Make, pass_options: Mapping[str, type], places: Places
) -> None:
    publish(repository.clone / "shared", recipe_text(bits=4))
    first = repository.commit("v1")
    publish(repository.clone / "shared", recipe_text(bits=4), recipe_text(version="1.1.0", bits=5))
    repository.commit("v2")
    add_remote(places.remotes, Remote("tag", parse_address(repository.address("v2") + "#subdirectory=shared")))
    with library() as both:
        found = resolve("lab/w4@^1", pass_options=pass_options, library=both)
    assert found.file and (found.file.version, found.file.origin) == ("1.1.0", "remote tag")
    address = parse_address(repository.address(first) + "#subdirectory=shared")
    session = GitSession(address)
    assert len(json.loads(session.read("index.json", 10_000))["recipes"]) == 1
    assert session.commit == first
    with pytest.raises(FileNotFoundError):
        session.read("recipes", 10_000)
    with pytest.raises(RemoteError, match="larger than the 10 bytes"):
        session.read("index.json", 10)
    folder = session._folder
    assert folder is not None and not (folder / "shared").exists()  # nothing is checked out
    session.close()
    assert not folder.exists()


def test_git_runs_nothing_of_the_repository(repository: Repository, tmp_path: Path) -> None:
    publish(repository.clone, recipe_text())
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (repository.clone / ".gitattributes").write_text("* filter=evil\n")
    (repository.clone / "link").symlink_to(secret)
    repository.commit("v1")
    git(repository.bare, "config", "filter.evil.smudge", f"touch {tmp_path}/ran")
    session = GitSession(parse_address(repository.address("v1")))
    assert b"recipes" in session.read("index.json", 10_000)
    assert session.read("link", 1000) == str(secret).encode()  # the text of the link, not what it leads to
    assert not (tmp_path / "ran").exists()
    session.close()


def test_git_that_fails(repository: Repository, library: Make, tmp_path: Path) -> None:
    publish(repository.clone, recipe_text())
    repository.commit("v1")
    said = failure(library(repository.address("v9")))
    assert "git fetch failed: fatal: couldn't find remote ref v9" in said
    with pytest.raises(RemoteError, match="git fetch failed"):
        GitSession(parse_address(f"git+file://{tmp_path}/none.git@v1")).read("index.json", 10)
    with pytest.raises(RemoteError, match="the repository is larger than 1 bytes"):
        GitSession(parse_address(repository.address("v1")), bytes_limit=1).read("index.json", 10)
    with pytest.raises(RemoteError, match="git did not end within 0 s"):
        GitSession(parse_address(repository.address("v1")), seconds=0.0).read("index.json", 10)
