"""Signatures of recipe files in OpenSSH's format, made and checked by `ssh-keygen -Y`.

Trusted keys are a file of allowed signers (see ssh-keygen(1)): a name and a public key a line. A signature is over the
bytes of the file, which hold the recipe's name and version, so it cannot be moved to another recipe.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmq_fx.errors import SignatureError
from dmq_fx.sharing.cache import write_atomically
from dmq_fx.sharing.index import clean

NAMESPACE = "dmq-recipe"
"""What a signature is for: one that was made for something else (a commit, a file) does not count."""

SUFFIX = ".sig"
BYTES_LIMIT = 16_384
_BEGIN = b"-----BEGIN SSH SIGNATURE-----"
_SECONDS = 30.0


def sign(path: Path, key: Path) -> Path:
    """Sign the file at `path` with a private key (or the public key of one that an agent holds); returns `path`.sig.

    ssh-keygen asks for the key's passphrase on the terminal. Raises SignatureError.
    """
    for file, what in ((path, "recipe"), (key, "key")):
        if not file.is_file():
            raise SignatureError(f"there is no {what} here", where=str(file))
    made = _keygen(["-Y", "sign", "-f", str(key.absolute()), "-n", NAMESPACE], path.read_bytes(), seconds=300.0)
    if made.returncode or not made.stdout.startswith(_BEGIN):
        raise SignatureError(f"ssh-keygen did not sign: {_reason(made)}", where=str(path))
    return write_atomically(path.with_name(path.name + SUFFIX), made.stdout, shared=True)


def check_matches(data: bytes, signature: bytes, where: str) -> None:
    """`signature` is one of `data`, by whomever. Raises SignatureError."""
    with _kept(signature, where) as file:
        done = _keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", file], data)
    if done.returncode:
        raise SignatureError(
            "the signature is not one of this file", where=where, hint="one of the two was changed; sign it again"
        )


def verify(data: bytes, signature: bytes, trusted: Path, where: str) -> str:
    """The name of the trusted key that signed `data`. Raises SignatureError if none did."""
    if not trusted.is_file():
        hint = "write one line a key: NAME KEY-TYPE KEY, such as: lab ssh-ed25519 AAAA..."
        raise SignatureError(f"there is no file of trusted keys at {trusted}", where=where, hint=hint)
    allowed = str(trusted.absolute())
    with _kept(signature, where) as file:
        found = _keygen(["-Y", "find-principals", "-s", file, "-f", allowed], b"")
        names = found.stdout.decode("utf-8", "replace").splitlines()
        if found.returncode or not names or not names[0]:
            hint = f"add the signer's public key to {trusted} if you trust it"
            raise SignatureError("not signed by a trusted key", where=where, hint=hint)
        arguments = ["-Y", "verify", "-f", allowed, "-I", names[0], "-n", NAMESPACE, "-s", file]
        done = _keygen(arguments, data)
    if done.returncode:
        check_matches(data, signature, where)
        hint = f"the line of {clean(names[0], 80)} in {trusted} limits it: its namespaces need {NAMESPACE}"
        raise SignatureError("signed by a key that is not trusted for recipes", where=where, hint=hint)
    return clean(names[0], 80)


@contextmanager
def _kept(signature: bytes, where: str) -> Iterator[str]:
    """A signature in a file of its own for as long as ssh-keygen reads it; gives its path."""
    if len(signature) > BYTES_LIMIT or not signature.startswith(_BEGIN):
        raise SignatureError("this is not a signature in OpenSSH's format", where=where)
    descriptor, name = tempfile.mkstemp(prefix="dmq-", suffix=SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(signature)
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


def _keygen(arguments: list[str], data: bytes, seconds: float = _SECONDS) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", *arguments], input=data, capture_output=True, timeout=seconds, check=False)
    except FileNotFoundError:
        raise SignatureError("ssh-keygen is not installed", hint="it comes with OpenSSH 8.2 or newer") from None
    except subprocess.TimeoutExpired:
        raise SignatureError(f"ssh-keygen did not end within {seconds:g} s") from None


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    return clean(done.stderr.decode("utf-8", "replace"), 200) or f"exit code {done.returncode}"
