"""`dmq sample`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from dmq_fx.cli.support import (
    BackendOption,
    CompileOption,
    DeviceOption,
    GuidanceOption,
    JsonOption,
    OriginOption,
    PickleOption,
    PromptOption,
    PromptsFileOption,
    all_prompts,
    print_json,
    progress,
)


def sample_command(
    artifact: Annotated[str, typer.Argument(help="Folder that dmq compile wrote.")],
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, max=4096, help="Images in the grid.")] = 64,
    output: Annotated[str, typer.Option("--output", "-o", help="Picture that is written.")] = "grid.png",
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Sampler steps.")] = 20,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            max=2**31 - 1,
            help="Seed of the first image; image k has seed + k. Calibration has 0 and on.",
        ),
    ] = 10_000,
    compare: Annotated[bool, typer.Option("--compare", help="Full precision beside it, same noise.")] = False,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a forward.")] = 32,
    prompt: PromptOption = None,
    prompts_file: PromptsFileOption = None,
    guidance_scale: GuidanceOption = None,
    model: OriginOption = None,
    backend: BackendOption = None,
    device: DeviceOption = "cpu",
    compile: CompileOption = True,
    allow_pickle: PickleOption = False,
    json: JsonOption = False,
) -> None:
    """Sample a grid of images from an artifact.

    Example: [bold]dmq sample out -n 64 -o grid.png --compare[/]
    """
    from dmq_fx.images import check_picture, save_grids
    from dmq_fx.pair import open_pair, sample
    from dmq_fx.sampling import SamplerOptions, check_conditioning

    check_picture(output)
    prompts = all_prompts(prompt, prompts_file)
    options = SamplerOptions(steps=steps, batch=batch, seed=seed, prompts=prompts, guidance_scale=guidance_scale)
    with progress(enabled=not json) as show:
        show("loading", 0, 0)
        pair = open_pair(
            artifact,
            model=model,
            backend=backend,
            device=device,
            compile=compile,
            allow_pickle=allow_pickle,
            weights=compare,
            progress=show,
        )
        check_conditioning(pair.reference, options)
        name = pair.opened.manifest.content["recipe"]["name"]
        if compare:
            from dmq_fx.metrics import compare as compare_models

            _, exact, approximate = compare_models(pair.reference, pair.quantized, options, samples, show)
            panels = [("full precision", exact), (name, approximate)]
        else:
            panels = [(name, sample(pair, samples, options, show))]
    facts = {"samples": samples, "steps": steps, "seed": seed, "compare": compare, "prompts": list(prompts)}
    facts |= {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    save_grids(output, panels, {"recipe": name, "digest": pair.opened.manifest.digest, **facts})
    if json:
        print_json({"output": output, **facts})
    else:
        Console(highlight=False, soft_wrap=True).print(f"wrote {output}")
