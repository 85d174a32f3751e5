"""A `--model` string or a Python object becomes a loaded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dmq_fx.errors import ModelError
from dmq_fx.models.build import build_denoiser
from dmq_fx.models.config import class_name_of, config_of, read_json
from dmq_fx.models.hub import fetch_file, fetch_weights
from dmq_fx.models.loaded import LoadedModel, component_of, freeze
from dmq_fx.models.pipeline import component_folder, denoiser_component, denoiser_of, load_pipeline
from dmq_fx.models.pixels import load_pixels
from dmq_fx.models.source import FORMS, folder_kind, parse_source
from dmq_fx.models.weights import load_weights

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline


def load_model(
    source: str | Path | nn.Module | DiffusionPipeline,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    allow_pickle: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """Load a denoiser with its weights, and the pipeline around it if the source has one.

    source: `builtin:NAME`, a folder of a pipeline or denoiser, `org/name[@revision]` on the hub, `config:FILE.json`
    (built on the meta device: enough to plan, no weights), or a module or pipeline, which is used as it is
    (`dtype`, `device` and `variant` do not apply) and put in eval mode without gradients.
    allow_pickle: also read `.bin` and `.ckpt` files, as tensors only.
    weights: False leaves those of the denoiser unread, for another in its place: it stays on the meta device, or is an
    empty module where the pipeline asks nothing of it (`load_pixels`).
    Raises ModelError.
    """
    if isinstance(source, nn.Module):
        return _from_module(source)
    if not isinstance(source, (str, Path)):
        return _from_pipeline(source)
    parsed = parse_source(source)
    if parsed.kind == "config":
        return load_denoiser_on_meta(source, dtype=dtype)
    folder = parsed.path or fetch_weights(parsed.text, variant=variant, allow_pickle=allow_pickle)
    if not weights:
        return _load_around(folder, parsed.text, dtype=dtype, device=torch.device(device), allow_pickle=allow_pickle)
    if folder_kind(folder) == "denoiser":
        denoiser = _load_denoiser(folder, dtype=dtype, variant=variant, allow_pickle=allow_pickle).to(device)
        return _loaded(denoiser, component_of(type(denoiser).__name__), None, parsed.text)
    component = denoiser_component(read_json(folder / "model_index.json"), folder / "model_index.json")
    inner = component_folder(folder, component)
    denoiser = _load_denoiser(inner, dtype=dtype, variant=variant, allow_pickle=allow_pickle)
    pipeline = load_pipeline(folder, component, denoiser, dtype=dtype, allow_pickle=allow_pickle)
    return _loaded(freeze(denoiser), component, pipeline.to(device), parsed.text)


def _load_around(
    folder: Path, origin: str, *, dtype: torch.dtype, device: torch.device, allow_pickle: bool
) -> LoadedModel:
    """All of a source but its denoiser's weights; raises ModelError."""
    pipeline = folder_kind(folder) == "pipeline"
    if pipeline and dtype == torch.float32 and device.type == "cpu":
        found = load_pixels(folder, origin)
        if found is not None:
            return found
    bare = replace(load_denoiser_on_meta(folder, dtype=dtype), origin=origin)
    if not pipeline:
        return bare
    whole = load_pipeline(folder, bare.component, bare.denoiser, dtype=dtype, allow_pickle=allow_pickle)
    for name, part in whole.components.items():
        if isinstance(part, nn.Module) and name != bare.component:
            part.to(device)
    return replace(bare, pipeline=whole)


def load_denoiser_on_meta(source: str | Path, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Build the denoiser of any string source on the meta device, from its config alone; raises ModelError."""
    parsed = parse_source(source)
    path, component = _config_file(parsed.text) if parsed.path is None else _local_config(parsed.path)
    config = read_json(path)
    class_name = class_name_of(config, path)
    denoiser = build_denoiser(class_name, config, dtype=dtype, where=str(path))
    return _loaded(denoiser, component or component_of(class_name), None, parsed.text)


def _local_config(path: Path) -> tuple[Path, str | None]:
    if not path.is_dir():
        return path, None
    if folder_kind(path) == "denoiser":
        return path / "config.json", None
    index = path / "model_index.json"
    component = denoiser_component(read_json(index), index)
    return component_folder(path, component) / "config.json", component


def _config_file(hub_id: str) -> tuple[Path, str | None]:
    """The config of a hub repository's denoiser, fetched alone."""
    index = fetch_file(hub_id, "model_index.json", required=False)
    if index is None:
        return _required(fetch_file(hub_id, "config.json")), None
    component = denoiser_component(read_json(index), index)
    path = fetch_file(hub_id, f"{component}/config.json", required=False)
    return path or _required(fetch_file(hub_id, "config.json")), component


def _required(path: Path | None) -> Path:
    if path is None:
        raise ModelError("the repository has no config.json")
    return path


def _load_denoiser(folder: Path, *, dtype: torch.dtype, variant: str | None, allow_pickle: bool) -> nn.Module:
    path = folder / "config.json"
    config = read_json(path)
    denoiser = build_denoiser(class_name_of(config, path), config, device="cpu", dtype=dtype, where=str(path))
    load_weights(denoiser, folder, variant=variant, allow_pickle=allow_pickle)
    return denoiser


def _from_module(module: nn.Module) -> LoadedModel:
    name = type(module).__name__
    return _loaded(freeze(module), component_of(name), None, f"python:{name}")


def _from_pipeline(pipeline: DiffusionPipeline) -> LoadedModel:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if not isinstance(pipeline, DiffusionPipeline):
        raise ModelError(
            f"a model cannot be a {type(pipeline).__name__}", hint=f"expected {FORMS}, an nn.Module or a pipeline"
        )
    component, denoiser = denoiser_of(pipeline)
    return _loaded(freeze(denoiser), component, pipeline, f"python:{type(pipeline).__name__}")


def _loaded(denoiser: nn.Module, component: str, pipeline: DiffusionPipeline | None, origin: str) -> LoadedModel:
    return LoadedModel(denoiser, component, pipeline, origin, config_of(denoiser), type(denoiser).__name__)
