"""From a recipe and a model to an artifact: the one place where all parts meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmq_fx.artifact.container import check_target
from dmq_fx.artifact.folder import TENSORS, save_program
from dmq_fx.artifact.sizes import Sizes, measure_sizes
from dmq_fx.backend_api import BACKENDS
from dmq_fx.backend_parity import BackendParity
from dmq_fx.backend_plan import verified_backend
from dmq_fx.calibration.capture import calibration_set
from dmq_fx.calibration.store import CalibrationCache, CalibrationSet
from dmq_fx.checkpoint import Checkpoint
from dmq_fx.environment import package_versions
from dmq_fx.error_report import error_report
from dmq_fx.errors import ModelError, RecipeError
from dmq_fx.gate_measurement import measure_gates
from dmq_fx.gates import GateResult
from dmq_fx.inspection import site_rows, site_table_html
from dmq_fx.metrics import Evaluation
from dmq_fx.models import LoadedModel, fingerprint, load_denoiser_on_meta, load_model
from dmq_fx.options import parse_device, parse_dtype
from dmq_fx.pass_api import pass_options
from dmq_fx.pipeline import check_order, check_plan, run_passes, with_expected_bits
from dmq_fx.planning import Plan, make_plan
from dmq_fx.program import PassContext, Program
from dmq_fx.recipe import Library, ModelFacts, ResolvedRecipe, lock_document, lock_text, resolve
from dmq_fx.roles import find_sites
from dmq_fx.sampling import Sampler, SamplerOptions, require_prompts
from dmq_fx.sharing.library import SharedLibrary
from dmq_fx.sharing.provenance import check_locked
from dmq_fx.tracing import TracedModel, graph_fingerprint, trace

DEFAULT_MODEL = "builtin:ddpm-mnist"
Progress = Callable[[str, int, int], None]
ModelSource = str | Path | nn.Module | Any
"""A `--model` string, a module, or a diffusers pipeline."""


@dataclass(frozen=True)
class CompileResult:
    """What a compile made.

    seconds: wall time; bytes: size of the artifact's files; gates: of `expect:`; passes: what each pass reported, with
    its name as `pass` and the number of `sites` that it worked on. sizes: of the model as papers count and honestly;
    tensor_bytes: of the file with its tensors.
    """

    output: Path
    digest: str
    seconds: float
    plan: Plan
    bytes: int
    gates: tuple[GateResult, ...]
    evaluation: Evaluation | None
    passes: tuple[dict[str, Any], ...] = ()
    parity: BackendParity | None = None
    sizes: Sizes | None = None
    tensor_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """The object that `dmq compile --json` prints."""
        totals = self.plan.totals
        return {
            "output": str(self.output),
            "digest": self.digest,
            "seconds": round(self.seconds, 3),
            "sites": totals.sites,
            "quantized_sites": totals.quantized_sites,
            "mean_weight_bits": totals.mean_weight_bits,
            "bytes": self.bytes,
            "sizes": {**self.sizes.to_json(), "file_bytes": self.tensor_bytes} if self.sizes else None,
            "gates": [gate.to_json() for gate in self.gates],
            "passes": [{"name": report["pass"], "sites": report["sites"]} for report in self.passes],
            "backend_parity": self.parity.to_json() if self.parity else None,
        }


def resolve_recipe(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    params: Sequence[str] = (),
    model: ModelFacts | None = None,
    library: Library | None = None,
) -> ResolvedRecipe:
    """Resolve a recipe with the options of every installed pass; `seed` is an override of `calibration.seed`.

    params: `name=value` texts. model: what overlays are chosen by. library: where names are looked up; by default all
    the user's places (files, dmq's library, the user's own, remotes).
    """
    if seed is not None:
        overrides = (*overrides, f"calibration.seed={seed}")
    with SharedLibrary() if library is None else nullcontext(library) as places:
        resolved = resolve(
            recipe,
            overrides=tuple(overrides),
            pass_options=pass_options(),
            params=tuple(params),
            model=model,
            library=places,
        )
    check_order(resolved.recipe.passes)
    BACKENDS.get(
        resolved.recipe.backend, error=RecipeError, where=resolved.recipe.backend_where or f"{recipe}: backend"
    )
    return resolved


def model_facts(loaded: LoadedModel) -> ModelFacts:
    """What overlays of a recipe are chosen by."""
    parameters = sum(parameter.numel() for parameter in loaded.denoiser.parameters())
    return ModelFacts(loaded.class_name, loaded.component, parameters)


def resolve_recipe_for(recipe: str | Path, model: str | Path, **given: Any) -> ResolvedRecipe:
    """`resolve_recipe` with the overlays for `model`, which is built from its config alone if there are any."""
    resolved = resolve_recipe(recipe, **given)
    if not resolved.conditional:
        return resolved
    return resolve_recipe(recipe, model=model_facts(load_denoiser_on_meta(model)), **given)


def plan(
    recipe: str | Path,
    *,
    model: ModelSource = DEFAULT_MODEL,
    overrides: Sequence[str] = (),
    inputs: dict[str, Any] | None = None,
    params: Sequence[str] = (),
    library: Library | None = None,
) -> Plan:
    """What `recipe` makes of `model`, without weights: a string source is built from its config alone."""
    return plan_with_graph(recipe, model=model, overrides=overrides, inputs=inputs, params=params, library=library)[2]


def plan_with_graph(
    recipe: str | Path,
    *,
    model: ModelSource = DEFAULT_MODEL,
    overrides: Sequence[str] = (),
    inputs: dict[str, Any] | None = None,
    params: Sequence[str] = (),
    library: Library | None = None,
) -> tuple[ResolvedRecipe, TracedModel, Plan]:
    """As `plan`, with the resolved recipe and the graph that the plan is for."""
    resolved = resolve_recipe(recipe, overrides, params=params, library=library)
    loaded = load_denoiser_on_meta(model) if isinstance(model, (str, Path)) else load_model(model)
    if resolved.conditional:
        resolved = resolve_recipe(recipe, overrides, params=params, model=model_facts(loaded), library=library)
    traced = trace(loaded.denoiser, inputs)
    made = make_plan(resolved.recipe, find_sites(traced), traced)
    check_plan(made, resolved.recipe.passes)
    return resolved, traced, with_expected_bits(made, resolved.recipe.passes)


def compile(
    recipe: str | Path,
    *,
    model: ModelSource = DEFAULT_MODEL,
    output: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    force: bool = False,
    resume: bool = False,
    allow_pickle: bool = False,
    verify_backend: str | None = None,
    inputs: dict[str, Any] | None = None,
    dynamic_size: bool = False,
    report: bool = True,
    cache: CalibrationCache | None = None,
    params: Sequence[str] = (),
    library: Library | None = None,
    locked: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CompileResult:
    """Compile `recipe` for `model` into an artifact at `output`.

    recipe: a file or a library name. model: a `--model` string, a module or a pipeline. overrides: `key.path=value`.
    dtype, device: of the loaded model (float32, the CPU); an object that is passed keeps its own.
    force: replace an artifact that is there.
    verify_backend: also compare this backend with fake quantization; the gate `backend_parity` does it with the
    recipe's own.
    resume: learned passes go on from the checkpoint that an interrupted compile to `output` left, if it left one.
    Without it such a checkpoint is discarded.
    inputs: keyword arguments of the denoiser's forward to trace it with, for a class that is not known, or for other
    shapes than its config's. dynamic_size: the graph takes any height and width (UNets).
    params: `name=value` of the recipe's parameters. library: where names of recipes are looked up. locked: a lock that
    the recipe must resolve to.
    report: also keep what inspection shows beside errors: distributions of every site's input and weight, images.
    progress: called with (what, done, total; total 0 if unknown).
    Gates of `expect:` are measured and returned, not raised: `CompileResult.gates`.
    Raises RecipeError, ModelError, TraceError, CalibrationError, ArtifactError.
    """
    started = time.perf_counter()
    target = check_target(Path(output), overwrite=force)
    resolved = resolve_recipe(recipe, overrides, seed, params=params, library=library)
    verified = verified_backend(resolved.recipe, verify_backend)
    if locked is not None and not resolved.conditional:
        check_locked(resolved, Path(locked), pass_options())
    progress("loading the model", 0, 0)
    place = parse_device(device)
    loaded = load_model(model, dtype=parse_dtype(dtype or "float32"), device=place, allow_pickle=allow_pickle)
    place, computed = _place_and_type(loaded, dtype)
    if not loaded.has_weights:
        raise ModelError("this model has no weights", where=loaded.origin, hint="`dmq plan` needs none; compile does")
    if resolved.conditional:
        resolved = resolve_recipe(recipe, overrides, seed, params=params, model=model_facts(loaded), library=library)
        verified = verified_backend(resolved.recipe, verify_backend)
        if locked is not None:
            check_locked(resolved, Path(locked), pass_options())
    if verified is not None:
        BACKENDS.get(verified).check(getattr(torch, computed))
    progress("tracing", 0, 0)
    traced = trace(loaded.denoiser, inputs, dynamic_size=dynamic_size)
    made = make_plan(resolved.recipe, find_sites(traced), traced)
    check_plan(made, resolved.recipe.passes)
    if made.needs_calibration or resolved.recipe.passes:
        require_prompts(loaded.pipeline, resolved.recipe.calibration.prompts)
    identity = fingerprint(loaded.denoiser)
    checkpoint = Checkpoint(target, resume=resume)
    checkpoint.require(recipe=resolved.digest, model=identity, version=package_versions(), device=place.type)
    found = _calibration(loaded, traced, resolved, made, identity, cache or CalibrationCache(), progress, inputs)
    timesteps = torch.tensor(list(dict.fromkeys(found.timesteps)) if found else [], dtype=torch.float32)
    program = Program(traced, made, timesteps)
    checkpoint.require(calibration=found.path.name if found else "none", graph=graph_fingerprint(traced.graph_module))
    context = PassContext(
        found,
        resolved.recipe.calibration.seed,
        place,
        progress,
        budget=resolved.recipe.budget,
        sampler=Sampler(loaded, SamplerOptions.of(resolved.recipe.calibration), inputs),
    )
    pass_reports = run_passes(program, resolved.recipe.passes, context, checkpoint)
    made = program.plan
    measured_errors = error_report(program, loaded, resolved.recipe.calibration, context, inputs, statistics=report)
    content = _content(loaded, resolved, identity, computed)
    lock = lock_document(
        resolved, model=content["model"], environment=content["environment"], seed=resolved.recipe.calibration.seed
    )
    sizes = measure_sizes(program)
    progress("writing", 0, 0)
    manifest = save_program(
        program,
        loaded,
        path=target,
        content=content,
        lock=lock_text(lock),
        errors=measured_errors.by_site,
        report={
            "passes": pass_reports,
            "timesteps": timesteps.tolist(),
            "totals": vars(made.totals),
            "sizes": sizes.to_json(),
            "errors": measured_errors.by_step,
        },
        html=site_table_html(resolved.recipe.name, site_rows(made, measured_errors.by_site)),
        overwrite=force,
        statistics=measured_errors.statistics,
    )
    checkpoint.remove()
    size = sum(record.size for record in manifest.files)
    tensors = next(record.size for record in manifest.files if record.name == TENSORS)
    measured = measure_gates(
        target,
        loaded,
        resolved.recipe,
        made,
        device=place,
        verify_backend=verify_backend,
        inputs=inputs,
        progress=progress,
    )
    seconds = time.perf_counter() - started
    return CompileResult(
        target,
        manifest.digest,
        seconds,
        made,
        size,
        measured.gates,
        measured.evaluation,
        tuple(pass_reports),
        measured.parity,
        sizes,
        tensors,
    )


def _place_and_type(loaded: LoadedModel, dtype: str | None) -> tuple[torch.device, str]:
    """Where the denoiser is and the name of its type; raises ModelError if that is not the type asked for."""
    first = next(loaded.denoiser.parameters(), torch.zeros(()))
    found = str(first.dtype).removeprefix("torch.")
    if dtype is not None and found != dtype:
        raise ModelError(f"the model computes in {found}, not {dtype}", where=loaded.origin, hint="convert it first")
    return first.device, found


def _calibration(
    loaded: LoadedModel,
    traced: TracedModel,
    resolved: ResolvedRecipe,
    made: Plan,
    identity: str,
    cache: CalibrationCache,
    progress: Progress,
    inputs: dict[str, Any] | None,
) -> CalibrationSet | None:
    """Calibration inputs, if anything needs them: activation ranges or passes."""
    if not made.needs_calibration and not resolved.recipe.passes:
        return None
    return calibration_set(
        loaded,
        traced,
        resolved.recipe.calibration,
        identity=identity,
        cache=cache,
        progress=progress,
        inputs=inputs,
    )


def _content(loaded: LoadedModel, resolved: ResolvedRecipe, identity: str, dtype: str) -> dict[str, Any]:
    """What the manifest says of model, recipe and environment."""
    return {
        "model": {
            "origin": loaded.origin,
            "component": loaded.component,
            "class_name": loaded.class_name,
            "fingerprint": identity,
            "compute_dtype": dtype,
        },
        "recipe": {"name": resolved.recipe.name, "version": resolved.recipe.version, "digest": resolved.digest},
        "backend": resolved.recipe.backend,
        "environment": package_versions(),
    }
