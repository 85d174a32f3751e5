"""Images of a model as they are sampled, kept in a folder if wanted: what is there is not sampled again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmq_fx.artifact.container import sibling
from dmq_fx.artifact.tensors import load_tensors, save_tensors
from dmq_fx.errors import ArtifactError
from dmq_fx.quality.features import to_uint8
from dmq_fx.sampling import Sampler

Progress = Callable[[str, int, int], None]
IDENTITY = "samples.json"
KEY_LENGTH = 16


class SampleStore:
    """Images 0, 1, 2, ... of one model under one sampler, as uint8, a file a batch.

    root: folder of all stores. identity: what the images depend on, which names the store's folder (written beside them
    as `samples.json`); a folder that holds something else under that name is an ArtifactError.
    """

    def __init__(self, root: str | Path, identity: Mapping[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True, indent=1)
        self.folder = Path(root) / hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
        record = self.folder / IDENTITY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not record.exists():
                partial = sibling(record, "partial")
                partial.write_text(text + "\n", encoding="utf-8")
                partial.replace(record)
            known = record.read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"cannot keep samples there: {error}", where=str(self.folder)) from error
        if known.strip() != text:
            hint = "remove the folder, or keep the samples elsewhere"
            raise ArtifactError("the folder holds samples of something else", where=str(self.folder), hint=hint)

    def batches(self) -> Iterator[Tensor]:
        """The images from the first on, as far as they are there without a gap; damaged files are removed."""
        count = 0
        while (path := self._path(count)).exists():
            try:
                images = load_tensors(path)["images"]
            except (ArtifactError, KeyError):
                path.unlink(missing_ok=True)
                return
            if not len(images):
                return
            count += len(images)
            yield images

    def add(self, first: int, images: Tensor) -> None:
        """Keep images `first`, `first` + 1, ...: [n, channels, height, width], uint8. Raises ArtifactError."""
        path = self._path(first)
        partial = sibling(path, "partial")
        try:
            save_tensors(partial, {"images": images.contiguous()})
            partial.replace(path)
        except OSError as error:
            raise ArtifactError(f"cannot keep the samples: {error}", where=str(path)) from error
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, first: int) -> Path:
        return self.folder / f"images-{first:07d}.safetensors"


def image_stream(
    sampler: Sampler,
    samples: int,
    denoiser: nn.Module | None = None,
    *,
    store: SampleStore | None = None,
    what: str = "sampling",
    progress: Progress = lambda what, done, total: None,
) -> Iterator[Tensor]:
    """Yield images 0 to `samples` - 1 in batches, uint8 [n, 1 or 3, height, width]: those of the store, then new ones.

    denoiser: in place of the sampler's own. Image k is that of seed `seed + k` whatever was interrupted before. Raises
    DmqError for samples that are no images.
    """
    done = 0
    for images in store.batches() if store is not None else ():
        images = images[: samples - done]
        done += len(images)
        yield images
        progress(what, done, samples)
        if done == samples:
            return
    for batch in sampler.run(samples, denoiser, first=done):
        images = to_uint8(batch.cpu())
        if store is not None:
            store.add(done, images)
        done += len(images)
        yield images
        progress(what, done, samples)
