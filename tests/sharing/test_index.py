"""Indexes of whoever wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.errors import RemoteError
from dmq_fx.recipe.versions import parse_reference
from dmq_fx.sharing.index import ENTRIES_LIMIT, Entry, clean, index_text, parse_index
from dmq_fx.sharing.library import choose

ENTRY = {"name": "lab/w4", "version": "1.0.0", "sha256": "ab" * 32, "size": 10}


def parse(*rows: Any, **document: Any) -> tuple[Entry, ...]:
    return parse_index(json.dumps({"format": 1, "recipes": list(rows), **document}).encode(), "remote lab")


def test_an_index_reads_back_in_one_order() -> None:
    rows = [Entry("lab/w4", version, f"{k:064x}", 5, "x", k % 2 == 0) for k, version in enumerate(("1.10.0", "1.9.0"))]
    assert parse_index(index_text(rows), "x") == (rows[1], rows[0])
    assert index_text(rows) == index_text(reversed(rows))
    assert parse({**ENTRY, "later": {"keys": "are ignored"}})[0].path == f"recipes/{'ab' * 32}.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../etc/passwd"}, "name is not one: '../../etc/passwd'"),
        ({"name": "/lab/w4"}, "name is not one"),
        ({"name": "lab/../w4"}, "name is not one"),
        ({"name": "C:/w4"}, "name is not one"),
        ({"name": "lab\\w4"}, "name is not one"),
        ({"name": "lab/w\u00e4"}, "name is not one"),
        ({"name": "lab/w4\n"}, "name is not one"),
        ({"name": "lab/w\u2215x"}, "name is not one"),
        ({"version": "1.0"}, "version is not one"),
        ({"version": "1.0.0/../x"}, "version is not one"),
        ({"version": "\u0661.0.0"}, "version is not one"),
        ({"sha256": "../" + "a" * 61}, "sha256 is not one"),
        ({"sha256": "AB" * 32}, "sha256 is not one"),
        ({"sha256": None}, "sha256 is not one: None"),
        ({"size": -1}, "size must be between 1 and 1,000,000, got -1"),
        ({"size": 10**9}, "size must be between"),
        ({"size": True}, "size must be between"),
        ({"size": 1.5}, "size must be between"),
        ({"signed": "yes"}, "signed true or false"),
        ({"summary": ["x"]}, "summary must be a string"),
    ],
)
def test_hostile_entries(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse({**ENTRY, "name": "lab/first"}, {**ENTRY, **change})
    assert message in str(caught.value)
    assert str(caught.value).startswith("remote lab: recipe 1: ")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>", "the index is not JSON"),
        (b"[" * 100_000, "the index is not JSON"),
        (b"\xff\xfe", "the index is not JSON"),
        (b"[]", "the index is not one of recipes"),
        (b'{"recipes": {}}', "the index is not one of recipes"),
        (b'{"recipes": []}', "has the format 'None'"),
        (b'{"recipes": [], "format": 2}', "has the format '2', and this dmq reads 1"),
        (b'{"recipes": [], "format": true}', "has the format 'True'"),
        (b'{"recipes": [1], "format": 1}', "an entry of the index is not an object"),
        (b" " * 16_000_001, "larger than 16,000,000 bytes"),
    ],
)
def test_what_is_no_index(data: bytes, message: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_index(data, "remote lab")
    assert message in str(caught.value)


def test_one_version_stands_once() -> None:
    with pytest.raises(RemoteError, match=r"lists lab/w4@1\.0\.0-rc1 twice"):
        parse({**ENTRY, "version": "1.0.0rc1"}, {**ENTRY, "version": "1.0.0-rc1", "sha256": "cd" * 32})
    with pytest.raises(RemoteError, match="more than 50,000"):
        parse(*[1] * (ENTRIES_LIMIT + 1))


def test_texts_are_safe_to_print() -> None:
    assert clean("a\x1b[31mred\x1b[0m\u202eb\u200b\r\nc\x00") == "a [31mred [0m b c"
    assert len(clean("x" * 10_000)) == 200
    assert parse({**ENTRY, "summary": "\x1b]0;title\x07[bold]x[/]"})[0].summary == "]0;title [bold]x[/]"


VERSIONS = st.builds(lambda *numbers: ".".join(map(str, numbers)), *[st.integers(0, 3)] * 3)
RANGES = st.sampled_from(["", "@^1", "@~1.2", "@>=1,<3", "@^0.1", "@2.0.0", "@^9", "@!=1.0.0"])


@settings(max_examples=200, deadline=None)
@given(st.lists(VERSIONS, unique=True, max_size=12), RANGES, st.randoms())
def test_resolving_does_not_depend_on_order(versions: list[str], wanted: str, random: Any) -> None:
    entries = [Entry("lab/w4", version, f"{k:064x}", 1) for k, version in enumerate(versions)]
    entries += [Entry("lab/other", "9.9.9", "f" * 64, 1)]
    reference = parse_reference(f"lab/w4{wanted}")
    found = choose(reference, entries)
    shuffled = list(entries)
    random.shuffle(shuffled)
    assert choose(reference, shuffled) == found == choose(reference, parse_index(index_text(shuffled), "x"))
    if found is not None:
        allowed = [e for e in entries if e.name == "lab/w4" and reference.specifiers.contains(e.version)]
        assert found in allowed
        assert all(tuple(map(int, e.version.split("."))) <= tuple(map(int, found.version.split("."))) for e in allowed)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["format", "recipes", "name", "version", "sha256", "size"]), inner)
        ),
        max_leaves=12,
    )
)
def test_reading_raises_nothing_but_remote_errors(document: Any) -> None:
    try:
        parse_index(json.dumps(document).encode(), "remote lab")
    except RemoteError as error:
        assert str(error).startswith("remote lab")
