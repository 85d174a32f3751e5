"""Metrics by the names that users give. A name says what was measured on which features, so that two never mix.

`fid`, `sfid`, `is`, `precision` and `recall` are what the literature calls so, on Inception's features. On a
classifier of our own the same computations have names of their own: `fd-mnist` is a Fréchet distance and no FID.
Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dmq_fx.errors import DmqError, did_you_mean

Kind = Literal[
    "frechet_distance",
    "spatial_frechet_distance",
    "inception_score",
    "precision",
    "recall",
    "lpips",
    "psnr",
    "clip_score",
]

INCEPTION = "inception"
EMBEDDED = ("mnist", "cifar10")
"""The feature extractors that come with dmq, `assets/classifier-NAME`."""

EXTRACTORS = (INCEPTION, *EMBEDDED)

_ON_INCEPTION: dict[str, Kind] = {
    "fid": "frechet_distance",
    "sfid": "spatial_frechet_distance",
    "is": "inception_score",
    "precision": "precision",
    "recall": "recall",
}
_ON_OTHERS: dict[str, Kind] = {
    {"fid": "fd", "sfid": "sfd"}.get(name, name): kind for name, kind in _ON_INCEPTION.items()
}
_ON_IMAGES: dict[str, Kind] = {"lpips": "lpips", "psnr": "psnr", "clip": "clip_score"}


@dataclass(frozen=True)
class Metric:
    """A metric that can be asked for. extractor: the features it is taken on; None for one of images themselves."""

    name: str
    kind: Kind
    extractor: str | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether images of the real distribution are needed (`--reference`)."""
        return self.extractor is not None and self.kind != "inception_score"

    @property
    def paired(self) -> bool:
        """Whether an image is compared with full precision's from the same noise."""
        return self.kind in ("lpips", "psnr")

    @property
    def needs_prompts(self) -> bool:
        return self.kind == "clip_score"

    @property
    def higher_is_better(self) -> bool:
        return self.kind in ("inception_score", "precision", "recall", "psnr", "clip_score")


METRICS: tuple[Metric, ...] = (
    *(Metric(name, kind, INCEPTION) for name, kind in _ON_INCEPTION.items()),
    *(Metric(f"{stem}-{own}", kind, own) for own in EMBEDDED for stem, kind in _ON_OTHERS.items()),
    *(Metric(name, kind) for name, kind in _ON_IMAGES.items()),
)
"""Every metric there is."""


def parse_metrics(names: str | Iterable[str], *, where: str = "--metrics") -> tuple[Metric, ...]:
    """The metrics called `names` (a list, or text with commas between), in that order, each once.

    Raises DmqError for a name that is unknown, with the closest and all known names, and for no name at all.
    """
    known = {metric.name: metric for metric in METRICS}
    asked = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    listed = f"known: {', '.join(known)}"
    for name in asked:
        if name and name not in known:
            close = did_you_mean(name, known)
            raise DmqError(f"unknown metric {name!r}", where=where, hint=f"{close} {listed}" if close else listed)
    found = dict.fromkeys(known[name] for name in asked if name)
    if not found:
        raise DmqError("no metric is named", where=where, hint=listed)
    return tuple(found)
