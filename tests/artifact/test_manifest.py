import json
from importlib.metadata import version

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.artifact.manifest import (
    FileRecord,
    canonical_json,
    is_file_name,
    make_manifest,
    manifest_to_json,
    parse_manifest,
    plain_json,
)
from dmq_fx.errors import ArtifactError, InternalError

SHA = "ab" * 32
FILES = [FileRecord("model.safetensors", 12, SHA), FileRecord("config.json", 3, SHA)]
CONTENT = {"recipe": {"name": "dmq/w4a8", "version": "1.0.0"}, "model": {"source": "é", "scale": 0.1, "steps": None}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def edited(**changes) -> str:
    """A valid manifest's text with some keys replaced; None removes one. The digest is not updated."""
    raw = json.loads(manifest_to_json(make_manifest(FILES, CONTENT))) | changes
    return json.dumps({key: value for key, value in raw.items() if value is not None})


def problem(text: str | bytes) -> ArtifactError:
    with pytest.raises(ArtifactError) as error:
        parse_manifest(text, where="out/manifest.json")
    assert error.value.where == "out/manifest.json"
    assert error.value.hint
    return error.value


def test_manifest_says_what_made_it_and_sorts_its_files():
    manifest = make_manifest(FILES, CONTENT)
    assert manifest.format == 1
    assert manifest.created_by == f"dmq-fx {version('dmq-fx')}"
    assert [record.name for record in manifest.files] == ["config.json", "model.safetensors"]
    assert manifest.record("config.json") == FILES[1]
    assert manifest.record("nothing") is None


@settings(max_examples=40)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_any_content_survives_the_file(content):
    manifest = make_manifest(FILES, content)
    text = manifest_to_json(manifest)
    assert parse_manifest(text, where="x") == manifest
    assert parse_manifest(text.encode("ascii"), where="x").content == content
    assert manifest_to_json(parse_manifest(text, where="x")) == text


def test_digest_depends_on_content_and_files_and_not_on_order():
    digest = make_manifest(FILES, CONTENT).digest
    assert make_manifest(FILES[::-1], dict(reversed(CONTENT.items()))).digest == digest
    assert make_manifest(FILES, CONTENT | {"seed": 1}).digest != digest
    assert make_manifest(FILES[:1], CONTENT).digest != digest
    assert make_manifest([FILES[0], FileRecord("config.json", 4, SHA)], CONTENT).digest != digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a manifest: not valid JSON"),
        ("{", "not a manifest: not valid JSON"),
        (b"\xff\xfe\xfd", "not a manifest: not valid JSON"),
        ('{"format": 1, "format": 1}', "the key 'format' appears twice"),
        ('{"format": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not a manifest: not valid JSON"),
        ("[]", "it has no integer 'format'"),
        ("{}", "it has no integer 'format'"),
        ('{"format": true}', "it has no integer 'format'"),
        ('{"format": 0}', "there is no artifact format 0"),
        (edited(digest=None), "the manifest has no 'digest'"),
        (edited(files=None), "the manifest has no 'files'"),
        (edited(extra=1), "the manifest has an unknown key 'extra'"),
        (edited(files={}), "'files' of the manifest must be a list, got {}"),
        (edited(content=[]), "'content' of the manifest must be a dict"),
        (edited(created_by=3), "'created_by' of the manifest must be a str, got 3"),
        (edited(files=[3]), "a file of the manifest must have 'name', 'size' and 'sha256', got 3"),
        (edited(files=[{"name": "a"}]), "a file of the manifest must have 'name'"),
        (edited(files=[{"name": "a", "size": -1, "sha256": SHA}]), "the size of 'a' must be a number of bytes, got -1"),
        (edited(files=[{"name": "a", "size": 1.0, "sha256": SHA}]), "the size of 'a' must be a number of bytes"),
        (edited(files=[{"name": "a", "size": 1, "sha256": "AB"}]), "the sha256 of 'a' must be 64 hexadecimal digits"),
        (edited(files=[vars(FILES[0]), vars(FILES[0])]), "the manifest lists 'model.safetensors' twice"),
        (edited().replace("0.1", "1e999"), "the content of the manifest is not plain JSON"),
    ],
)
def test_every_problem_is_named(text, message):
    assert message in problem(text).message


def test_a_newer_format_asks_for_an_upgrade():
    error = problem('{"format": 3, "whatever": []}')
    assert error.message == "artifact format 3 is newer than this dmq understands (1)"
    assert error.hint == "upgrade dmq"


@pytest.mark.parametrize(
    "text",
    [
        edited(content=CONTENT | {"seed": 1}),
        edited(created_by="dmq-fx 9"),
        edited(files=[]),
        edited(digest=SHA),
    ],
)
def test_a_change_is_noticed(text):
    assert problem(text).message == "manifest.json was changed after it was written"


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "a\\b", "/etc/passwd", "C:x", ".hidden", "a\n", "é"])
def test_names_that_leave_the_folder_are_refused(name):
    assert not is_file_name(name)
    text = edited(files=[{"name": name, "size": 1, "sha256": SHA}])
    assert "cannot be the name of a file of an artifact" in problem(text).message


def test_the_manifest_does_not_list_itself():
    assert not is_file_name("manifest.json")
    assert is_file_name("model-00001-of-00002.safetensors")


def test_canonical_json_is_sorted_compact_ascii():
    assert canonical_json({"b": (1, 2.5), "a": "é", "c": None}) == '{"a":"\\u00e9","b":[1,2.5],"c":null}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{1: 2}]}, "$.a[0]: a key of JSON must be a string, got 1"),
        ({"a": float("nan")}, "$.a: nan of type float is not JSON"),
        ([{3}], "$[0]: {3} of type set is not JSON"),
    ],
)
def test_what_is_not_json_is_named(value, message):
    with pytest.raises(InternalError) as error:
        plain_json(value)
    assert str(error.value) == message
