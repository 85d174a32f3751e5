"""Fetching from the Hugging Face hub: `org/name` or `org/name@revision`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from dmq_fx.errors import ModelError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(@[\w./-]+)?$")


def is_hub_id(source: str) -> bool:
    """True for `org/name` and `org/name@revision`."""
    return bool(_HUB_ID.match(source)) and not source.startswith((".", "/"))


def fetch_weights(source: str, *, variant: str | None = None, allow_pickle: bool = False) -> Path:
    """Download a pipeline (or a repository that holds one denoiser) and return its folder."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from huggingface_hub import snapshot_download

    name, revision = _split(source)
    if fetch_file(source, "model_index.json", required=False) is not None:
        safetensors = None if allow_pickle else True
        folder = _online(
            source,
            lambda: DiffusionPipeline.download(
                name, revision=revision, variant=variant, use_safetensors=safetensors, trust_remote_code=False
            ),
        )
    else:
        patterns = ["config.json", "*.safetensors", "*.safetensors.index*.json", *(["*.bin"] if allow_pickle else [])]
        folder = _online(source, lambda: snapshot_download(name, revision=revision, allow_patterns=patterns))
    return Path(folder)


def fetch_file(source: str, path: str, *, required: bool = True) -> Path | None:
    """Download one file of a repository; None where it has no such file and `required` is False."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, revision = _split(source)
    try:
        return Path(_online(source, lambda: hf_hub_download(name, path, revision=revision)))
    except ModelError as error:
        cause = error.__cause__
        absent = isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError)
        if absent and not required:
            return None
        if absent:
            raise ModelError(f"the repository has no file {path!r}", where=source) from cause
        raise


def _online(source: str, download: Callable[[], str | os.PathLike[str]]) -> str | os.PathLike[str]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return download()
    except GatedRepoError as error:
        hint = "accept the model's terms on huggingface.co, then run `hf auth login`"
        raise ModelError("the repository is gated", where=source, hint=hint) from error
    except RevisionNotFoundError as error:
        raise ModelError("the repository has no such revision", where=source) from error
    except RepositoryNotFoundError as error:
        hint = "it is neither a folder here nor a repository on the hub; private ones need `hf auth login`"
        raise ModelError("no such model", where=source, hint=hint) from error
    except Exception as error:  # connection errors of several libraries
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = f"there is no folder {source!r} here either; check the network, or pass a folder you downloaded"
        raise ModelError(f"cannot be fetched from the hub: {reason}", where=source, hint=hint) from error


def _split(source: str) -> tuple[str, str | None]:
    name, _, revision = source.partition("@")
    return name, revision or None
