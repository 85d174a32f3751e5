"""Signatures in OpenSSH's format, and what `--require-signed` asks for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmq_fx.errors import DmqError, SignatureError
from dmq_fx.recipe import resolve
from dmq_fx.sharing import signing
from dmq_fx.sharing.library import SharedLibrary

from .conftest import Make, publish, recipe_text


def signature_of(text: str, key: Path, folder: Path) -> bytes:
    path = folder / "to-sign.yaml"
    path.write_text(text)
    return signing.sign(path, key).read_bytes()


def error_of(library: SharedLibrary, reference: str, pass_options: Mapping[str, type]) -> str:
    with pytest.raises(DmqError) as caught:
        resolve(reference, pass_options=pass_options, library=library)
    assert isinstance(caught.value, SignatureError)
    return str(caught.value)


def test_any_tool_of_openssh_checks_a_signature(tmp_path: Path, keys: dict[str, Path], trusted: Path) -> None:
    text = recipe_text()
    signature = signature_of(text, keys["lab"], tmp_path)
    command = ["ssh-keygen", "-Y", "verify", "-f", str(trusted), "-I", "lab@example.org", "-n", "dmq-recipe"]
    done = subprocess.run([*command, "-s", str(tmp_path / "to-sign.yaml.sig")], input=text.encode(), check=False)
    assert done.returncode == 0
    assert signing.verify(text.encode(), signature, trusted, "x") == "lab@example.org"
    signing.check_matches(text.encode(), signature, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data, sig: (data + b" ", sig), "the signature is not one of this file"),
        (lambda data, sig: (data, sig.replace(b"-----BEGIN SSH", b"-----BEGIN PGP")), "not a signature in OpenSSH's"),
        (lambda data, sig: (data, sig[:60] + b"AAAA" + sig[64:]), "not signed by a trusted key"),
        (lambda data, sig: (data, sig + b"x" * 20_000), "not a signature in OpenSSH's"),
        (lambda data, sig: (data, b""), "not a signature in OpenSSH's"),
    ],
)
def test_signatures_that_do_not_hold(
    tmp_path: Path, keys: dict[str, Path], trusted: Path, change: Callable[..., tuple[bytes, bytes]], message: str
) -> None:
    data = recipe_text().encode()
    changed, signature = change(data, signature_of(data.decode(), keys["lab"], tmp_path))
    with pytest.raises(SignatureError) as caught:
        signing.verify(changed, signature, trusted, "r.yaml")
    assert message in str(caught.value) and str(caught.value).startswith("r.yaml: ")


def test_keys_that_are_not_trusted(tmp_path: Path, keys: dict[str, Path], trusted: Path) -> None:
    data = recipe_text().encode()
    signature = signature_of(data.decode(), keys["other"], tmp_path)
    with pytest.raises(SignatureError, match=r"not signed by a trusted key\n  hint: add the signer's public key to"):
        signing.verify(data, signature, trusted, "r.yaml")
    with pytest.raises(SignatureError, match="there is no file of trusted keys"):
        signing.verify(data, signature, tmp_path / "none", "r.yaml")
    other = tmp_path / "other"
    made = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(keys["lab"]), "-n", "git"], input=data, capture_output=True, check=True
    )
    with pytest.raises(SignatureError):  # made for something else
        signing.verify(data, made.stdout, trusted, "r.yaml")
    assert not other.exists()


def test_signing_what_is_not_there(tmp_path: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(SignatureError, match="there is no recipe here"):
        signing.sign(tmp_path / "none.yaml", keys["lab"])
    (tmp_path / "r.yaml").write_text("x")
    with pytest.raises(SignatureError, match="there is no key here"):
        signing.sign(tmp_path / "r.yaml", tmp_path / "none")
    (tmp_path / "nokey").write_text("not a key")
    with pytest.raises(SignatureError, match="ssh-keygen did not sign"):
        signing.sign(tmp_path / "r.yaml", tmp_path / "nokey")
    assert not (tmp_path / "r.yaml.sig").exists()


def test_every_file_of_a_remote_is_signed(
    shelf: Path, tmp_path: Path, library: Make, keys: dict[str, Path], trusted: Path, pass_options: Mapping[str, type]
) -> None:
    parent, child = recipe_text("lab/base"), recipe_text("lab/w4", more="extends: lab/base@^1\n")
    mixed = recipe_text("lab/mixed", more="extends: ptq/w8a8@^1\n")
    signed = {text: signature_of(text, keys["lab"], tmp_path) for text in (child, mixed)}
    publish(shelf, parent, child, mixed, signed=signed)
    resolve("lab/w4", pass_options=pass_options, library=library(shelf))
    strict = library(require_signed=True)
    assert "lab/base@1.0.0 of remote lab: not signed" in error_of(strict, "lab/w4", pass_options)
    resolve("lab/mixed", pass_options=pass_options, library=strict)  # dmq's own parents are part of dmq
    signed[parent] = signature_of(parent, keys["other"], tmp_path)
    publish(shelf, parent, child, mixed, signed=signed)
    assert "not signed by a trusted key" in error_of(library(require_signed=True), "lab/w4", pass_options)
    signed[parent] = signature_of(parent, keys["lab"], tmp_path)
    publish(shelf, parent, child, mixed, signed=signed)
    resolve("lab/w4", pass_options=pass_options, library=library(require_signed=True))
    resolve("lab/w4", pass_options=pass_options, library=library(require_signed=True, offline=True))


def test_files_are_signed_beside_them(
    tmp_path: Path, library: Make, keys: dict[str, Path], trusted: Path, pass_options: Mapping[str, type]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text())
    strict = library(require_signed=True)
    assert "r.yaml: not signed" in error_of(strict, str(path), pass_options)
    signing.sign(path, keys["lab"])
    resolve(path, pass_options=pass_options, library=strict)
    path.write_text(recipe_text(bits=5))
    assert "the signature is not one of this file" in error_of(strict, str(path), pass_options)


def test_a_key_that_is_trusted_for_something_else(tmp_path: Path, keys: dict[str, Path], trusted: Path) -> None:
    text = recipe_text()
    signature = signature_of(text, keys["lab"], tmp_path)
    trusted.write_text(trusted.read_text().replace(" ", ' namespaces="git" ', 1))
    with pytest.raises(SignatureError, match="not trusted for recipes"):
        signing.verify(text.encode(), signature, trusted, "x")
    with pytest.raises(SignatureError, match="not one of this file"):
        signing.verify(b"other", signature, trusted, "x")
