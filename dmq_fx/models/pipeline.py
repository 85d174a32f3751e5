"""Pipelines: which of their parts is the denoiser, and loading the others around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models.config import read_json
from dmq_fx.models.loaded import COMPONENTS

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

_LIBRARIES = ("diffusers", "transformers")


def denoiser_component(index: dict[str, Any], where: Path) -> str:
    """The name of the denoiser in a pipeline's `model_index.json`; raises ModelError where there is none.

    Raises as well where the index asks for classes outside of diffusers and transformers: those are code.
    """
    import diffusers

    for name, entry in index.items():
        library = entry[0] if isinstance(entry, list) and len(entry) == 2 else None
        if name.startswith("_") or library is None or library in _LIBRARIES:
            continue
        if not hasattr(diffusers.pipelines, str(library)):
            hint = "dmq runs no code that comes with a model; only diffusers and transformers classes are loaded"
            raise ModelError(f"component {name!r} comes from {library!r}", where=str(where), hint=hint)
    for name in COMPONENTS:
        if isinstance(index.get(name), list) and index[name][0] is not None:
            return name
    parts = ", ".join(name for name in index if not name.startswith("_"))
    raise ModelError(
        "the pipeline has no denoiser", where=str(where), hint=f"expected 'unet' or 'transformer', found {parts}"
    )


def component_folder(folder: Path, component: str) -> Path:
    """The folder of a pipeline's component: some published pipelines keep the denoiser at the top."""
    return folder / component if (folder / component).is_dir() else folder


def load_pipeline(
    folder: Path, component: str, denoiser: nn.Module, *, dtype: torch.dtype, allow_pickle: bool
) -> DiffusionPipeline:
    """The pipeline in `folder` around a denoiser that is already loaded."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.utils.import_utils import is_accelerate_available

    index = folder / "model_index.json"
    name = read_json(index).get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"'_class_name' is {name!r}", where=str(index), hint="it names a pipeline class of diffusers")
    try:
        with _no_progress_bar():
            return DiffusionPipeline.from_pretrained(
                str(folder),
                dtype=dtype,
                low_cpu_mem_usage=is_accelerate_available(),
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=False,
                **{component: denoiser},
            )
    except Exception as error:  # diffusers and transformers raise whatever they run into
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "every part of the pipeline must be in the folder, as safetensors"
        raise ModelError(f"{name} cannot be loaded: {reason}", where=str(folder), hint=hint) from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """diffusers' bar over the parts of a pipeline, off for a while: it says nothing that a caller's own does not."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def denoiser_of(pipeline: DiffusionPipeline) -> tuple[str, nn.Module]:
    """The component name and module of a pipeline's denoiser."""
    for name in COMPONENTS:
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            return name, module
    raise ModelError(
        "the pipeline has no denoiser", where=type(pipeline).__name__, hint="expected its 'unet' or 'transformer'"
    )
