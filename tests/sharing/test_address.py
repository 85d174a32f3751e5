"""Which addresses are remotes, and what of an address is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmq_fx.errors import RemoteError
from dmq_fx.sharing.address import parse_address, redact

COMMIT = "1234567890abcdef1234567890abcdef12345678"


@pytest.mark.parametrize(
    ("text", "protocol", "url"),
    [
        ("https://example.org/recipes/", "https", "https://example.org/recipes"),
        ("hf://datasets/lab/recipes", "hf", "hf://datasets/lab/recipes"),
        ("s3://bucket/recipes", "s3", "s3://bucket/recipes"),
        ("github://lab:recipes@v1/folder", "github", "github://lab:recipes@v1/folder"),
        ("file:///srv/recipes", "file", "/srv/recipes"),
        ("http://127.0.0.1:8000", "http", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http", "http://[::1]:8000"),
    ],
)
def test_stores_of_files(text: str, protocol: str, url: str) -> None:
    address = parse_address(text)
    assert (address.protocol, address.url, address.is_git, address.is_local) == (
        protocol,
        url,
        False,
        protocol == "file",
    )
    assert parse_address(address.text) == address  # as it is kept, it reads the same


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("./recipes").url == str(tmp_path / "recipes")
    assert parse_address("recipes").text == f"file://{tmp_path}/recipes"
    assert parse_address("recipes").origin("lab") == "remote lab"  # no path of this machine goes into a lock


@pytest.mark.parametrize(
    ("text", "url", "revision", "subfolder"),
    [
        ("git+https://example.org/lab/r.git@v1.0", "https://example.org/lab/r.git", "v1.0", ""),
        (f"git+ssh://git@example.org/r.git@{COMMIT}", "ssh://git@example.org/r.git", COMMIT, ""),
        ("git+https://example.org/r@v1#subdirectory=a/b", "https://example.org/r", "v1", "a/b"),
        ("git+file:///srv/r.git@main", "file:///srv/r.git", "main", ""),
    ],
)
def test_git(text: str, url: str, revision: str, subfolder: str) -> None:
    address = parse_address(text)
    assert (address.url, address.revision, address.subfolder, address.text) == (url, revision, subfolder, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplecache::https://example.org/x", "chained ones"),
        ("zip://a.zip::https://example.org", "chained ones"),
        ("ext::sh -c touch% /tmp/x", "printable characters without spaces"),
        ("git+ext::sh", "chained ones"),
        ("git+ext://example.org/r@v1", "git repositories are not read from 'ext'"),
        ("reference://example.org/x", "remotes are not read from 'reference'"),
        ("sftp://example.org/x", "remotes are not read from 'sftp'"),
        ("memory://x", "remotes are not read from 'memory'"),
        ("http://example.org/x", "http can be changed on the way"),
        ("git+http://example.org/r@v1", "http can be changed on the way"),
        ("https:///x", "the address names no host"),
        ("https://example.org:x/", "not an address"),
        ("https://example.org/a/../b", "no '..'"),
        ("https://example.org/%2e%2e/b", "no '..'"),
        ("https://example.org/x?version=1", "no query"),
        ("https://example.org/x#y", "no fragment"),
        ("file://host/x", "a file address names no host"),
        ("git+https://example.org/r.git", "one tag or commit"),
        ("git+https://example.org/r.git@--upload-pack=x", "is not the name of a tag or commit"),
        ("git+https://example.org/r.git@a:b", "is not the name of a tag or commit"),
        ("git+https://example.org/r.git@a..b", "is not the name of a tag or commit"),
        ("git+ssh://-oProxyCommand=x/r@v1", "does not begin with '-'"),
        ("git+ssh://-x@example.org/r@v1", "does not begin with '-'"),
        ("git+https://example.org/r@v1#subdirectory=../x", "`subdirectory=FOLDER`"),
        ("git+https://example.org/r@v1#egg=x", "`subdirectory=FOLDER`"),
        ("https://example.org/\u202ex", "printable characters"),
        ("https://example.org/\nx", "printable characters"),
        ("https://" + "x" * 2000, "at most 1,000"),
    ],
)
def test_what_is_no_remote(text: str, message: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_address(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@example.org/r",
        "https://hunter2@example.org/r",
        "git+https://x:hunter2@example.org/r@v1",
        "git+ssh://git:hunter2@example.org/r@v1",
        "s3://key:hunter2@bucket/r",
        "https://example.org/r?token=hunter2",
        "https://user:hunter2@example.org:port/r",
        "ftp://user:hunter2@example.org/r",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_address(text)
    assert "hunter2" not in str(caught.value) + repr(caught.value)


def test_messages_of_others_lose_their_secrets() -> None:
    message = "fatal: unable to access 'https://u:hunter2@example.org/r?key=hunter2'"
    assert redact(message) == "fatal: unable to access 'https://***@example.org/r?***'"


@pytest.mark.parametrize(
    "text", ["https://u:SEC@RET@host/x", "https://u:SEC/RET@host/x", "git+https://u:SEC/RET@host/r.git@v1"]
)
def test_a_password_with_any_character_is_not_repeated(text: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_address(text)
    assert "SEC" not in str(caught.value) and "RET" not in str(caught.value)


def test_redact_leaves_ports_and_revisions() -> None:
    for text in ("git+https://host:8080/r.git@v1", "git+https://host/r.git@v1", "git+http://[::1]:80/r.git@v1"):
        assert redact(text) == text


def test_a_path_has_no_nul() -> None:
    with pytest.raises(RemoteError, match="NUL"):
        parse_address("file:///a%00b")
