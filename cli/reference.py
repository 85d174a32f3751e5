"""`dmq reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmq_fx.cli.support import DeviceOption, JsonOption, print_json, progress


def reference_command(
    images: Annotated[str, typer.Argument(help="Folder or archive of images.")],
    output: Annotated[str, typer.Option("--output", "-o", help="File that is written (.safetensors).")],
    extractor: Annotated[
        str, typer.Option("--extractor", help="inception, or an embedded classifier: mnist, cifar10.")
    ] = "inception",
    subset: Annotated[str | None, typer.Option("--subset", help="Folder inside of the images, such as test.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Bring every image to so many pixels, as the model's are.")
    ] = None,
    feature_extractor: Annotated[
        str | None, typer.Option("--feature-extractor", help="File of Inception's weights; from the hub if left out.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a forward.")] = 64,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Store the statistics of real images, so that dmq eval need not read the images again.

    Example: [bold]dmq reference mnist.tar.xz --subset test --extractor mnist -o mnist-test.safetensors[/]
    """
    from dmq_fx.errors import DmqError
    from dmq_fx.quality.features import load_extractor
    from dmq_fx.quality.reference import reference_statistics
    from dmq_fx.quality.statistics import check_statistics_path, save_statistics

    check_statistics_path(output)
    if not Path(images).exists():  # before weights of an extractor are fetched
        raise DmqError("there is no such file or folder", where=images)
    with progress(enabled=not json) as show:
        found = reference_statistics(
            images,
            load_extractor(extractor, feature_extractor, device),
            subset=subset,
            size=None if size is None else (size, size),
            batch=batch,
            progress=show,
        )
    save_statistics(output, found)
    if json:
        print_json({"output": output, "source": found.source, "extractor": extractor, "images": found.count})
    else:
        Console(highlight=False, soft_wrap=True).print(f"wrote {output}: {found.count} images of {found.source}")
