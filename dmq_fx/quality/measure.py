"""Every metric that was asked for, of one model's samples.

The images go through a folder on disk (a temporary one where none is named), so that memory does not grow with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from dmq_fx.environment import package_versions
from dmq_fx.errors import DmqError
from dmq_fx.models import LoadedModel
from dmq_fx.quality.features import FeatureExtractor, load_extractor
from dmq_fx.quality.image_scores import CLIP_MODEL, clip_score, load_clip, load_lpips, lpips, psnr
from dmq_fx.quality.libraries import require_library
from dmq_fx.quality.metric_names import INCEPTION, Metric
from dmq_fx.quality.reference import reference_name, reference_statistics
from dmq_fx.quality.samples import SampleStore, image_stream
from dmq_fx.quality.scores import NEIGHBOURS, SPLITS, feature_scores
from dmq_fx.quality.statistics import FeatureStatistics, StatisticsCollector, collect
from dmq_fx.sampling import Sampler, SamplerOptions
from dmq_fx.sampling.identity import scheduler_record, surroundings
from dmq_fx.sampling.image_size import image_size

Progress = Callable[[str, int, int], None]
PAIRED = 64
"""Pairs of images that a network is given at once."""
FEWEST = {"inception_score": 2 * SPLITS, "precision": NEIGHBOURS + 2, "recall": NEIGHBOURS + 2}
"""Images that a score needs, by kind; others of features need two, which have a covariance."""
FULL_PRECISION = "full-precision"
"""As a reference: the model's own images in full precision, from noise that no score is taken on."""


@dataclass(frozen=True)
class QualityOptions:
    """What is measured. metrics: see `metric_names`.

    samples: images of a score. repeats: scores of as many sets of images, of seeds that follow each other.
    reference: an image folder, an archive, stored statistics, or `full-precision`; subset: a folder inside.
    feature_extractor: file of Inception's weights. clip_model: folder or hub id; None for CLIP_MODEL. samples_dir:
    where images are kept.
    full_precision: the same scores of full precision, to say what difference counts as one.
    """

    metrics: tuple[Metric, ...]
    samples: int
    repeats: int = 1
    reference: str | Path | None = None
    subset: str | None = None
    feature_extractor: str | Path | None = None
    clip_model: str | None = None
    samples_dir: str | Path | None = None
    full_precision: bool = False

    @property
    def extractors(self) -> tuple[str, ...]:
        """Names of the extractors that the metrics are taken on."""
        return tuple(dict.fromkeys(metric.extractor for metric in self.metrics if metric.extractor))


@dataclass(frozen=True)
class Score:
    """One metric of the images of every repeat; None where images are equal (PSNR) and nothing else."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return fmean(known) if len(known) == len(self.values) else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the repeats (n - 1); None of a single one."""
        known = [value for value in self.values if value is not None]
        return stdev(known) if len(known) == len(self.values) > 1 else None

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}


@dataclass(frozen=True)
class Quality:
    """Scores by metric name. full_precision: of the full-precision model on the same noise, if asked for.

    reference: its name, with the number of its images under every extractor. extractors: digests of the weights.
    """

    samples: int
    repeats: int
    scores: dict[str, Score]
    full_precision: dict[str, Score] | None
    reference: str | None
    reference_images: dict[str, int]
    extractors: dict[str, str]
    prompts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The part `quality` of what `dmq eval --json` prints."""
        exact = self.full_precision
        return {
            "samples": self.samples,
            "repeats": self.repeats,
            "scores": {name: score.to_json() for name, score in self.scores.items()},
            "full_precision": None if exact is None else {name: score.to_json() for name, score in exact.items()},
            "reference": self.reference,
            "reference_images": self.reference_images,
            "extractors": self.extractors,
            "prompts": list(self.prompts),
        }


def measure_quality(
    loaded: LoadedModel,
    quantized: nn.Module,
    identities: tuple[Mapping[str, Any], Mapping[str, Any]],
    sampling: SamplerOptions,
    options: QualityOptions,
    progress: Progress = lambda what, done, total: None,
) -> Quality:
    """Sample the quantized model (and full precision where something needs it) and take every metric.

    identities: what names the samples of full precision and of the quantized model in `samples_dir`, beside the sampler
    and the rest of the pipeline. Raises DmqError for metrics that lack what they need, before anything is sampled.
    """
    check(options, sampling)
    if loaded.pipeline is None:
        hint = "compile a pipeline's folder, or pass the pipeline that the denoiser belongs to as `model`"
        raise DmqError("metrics are of images, and this model is a denoiser alone", where=loaded.origin, hint=hint)
    with TemporaryDirectory() as temporary:
        root = Path(options.samples_dir or temporary)
        run = _Run(loaded, identities, sampling, options, root, progress)
        ours = [run.scores(quantized, repeat) for repeat in range(options.repeats)]
        exact = [run.scores(None, repeat) for repeat in range(options.repeats)] if options.full_precision else []
    return Quality(
        samples=options.samples,
        repeats=options.repeats,
        scores=_by_metric(ours),
        full_precision=_by_metric(exact) if exact else None,
        reference=run.reference_name,
        reference_images={name: found.count for name, found in run.references.items()},
        extractors={name: extractor.digest for name, extractor in run.extractors.items()},
        prompts=sampling.prompts,
    )


def check(options: QualityOptions, sampling: SamplerOptions) -> None:
    """Raise DmqError for what cannot work, before minutes of sampling: what is missing, or too little."""
    for metric in options.metrics:
        needed = FEWEST.get(metric.kind, 2 if metric.extractor else 1)
        if options.samples < needed:
            message = f"{metric.name!r} needs {needed} images or more, not {options.samples}"
            raise DmqError(message, where="--samples")
        require_library(metric)
        if metric.needs_reference and options.reference is None:
            hint = f"name a folder or archive of images, stored statistics, or `{FULL_PRECISION}`"
            raise DmqError(f"{metric.name!r} needs images to compare with", where="--reference", hint=hint)
        if metric.needs_prompts and not sampling.prompts:
            raise DmqError(f"{metric.name!r} needs prompts", where="--prompt", hint="or --prompts-file FILE")
    if options.reference is not None and not any(metric.needs_reference for metric in options.metrics):
        raise DmqError("no metric that was asked for compares with a reference", where="--reference")
    if options.reference not in (None, FULL_PRECISION) and not Path(str(options.reference)).exists():
        raise DmqError("there is no such file or folder", where=str(options.reference), hint="see --reference")
    if options.reference == FULL_PRECISION and options.subset is not None:
        raise DmqError("full precision's own images have no subset", where="--subset", hint="leave it out")
    if options.reference is None and options.subset is not None:
        raise DmqError(f"{options.subset!r} is a folder inside of a reference, and there is none", where="--subset")
    if options.clip_model is not None and not any(metric.needs_prompts for metric in options.metrics):
        message = f"no metric that was asked for is taken on CLIP, and received {options.clip_model!r}"
        raise DmqError(message, where="--clip-model", hint="leave it out, or ask for `clip`")
    if options.feature_extractor is not None and INCEPTION not in options.extractors:
        hint = "leave it out: the embedded classifiers bring their weights"
        raise DmqError("no metric that was asked for is taken on Inception", where="--feature-extractor", hint=hint)


def _check_reference(metric: Metric, reference: FeatureStatistics) -> None:
    """Raise DmqError for a reference of fewer images than the metric needs."""
    needed = FEWEST.get(metric.kind, 2)
    found = len(reference.features) if metric.kind in ("precision", "recall") else reference.count
    if found < needed:
        message = f"{metric.name!r} needs {needed} images or more, and the reference has {found}"
        raise DmqError(message, where=reference.source)


def _by_metric(repeats: Sequence[Mapping[str, float | None]]) -> dict[str, Score]:
    return {name: Score(tuple(scores[name] for scores in repeats)) for name in repeats[0]}


@dataclass
class _Run:
    """What the repeats share: extractors and the statistics of the reference."""

    loaded: LoadedModel
    identities: tuple[Mapping[str, Any], Mapping[str, Any]]
    sampling: SamplerOptions
    options: QualityOptions
    root: Path
    progress: Progress
    extractors: dict[str, FeatureExtractor] = field(init=False)
    references: dict[str, FeatureStatistics] = field(init=False, default_factory=dict)
    reference_name: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        sampler = Sampler(self.loaded, self.sampling)
        self._surroundings = {"scheduler": scheduler_record(sampler), **surroundings(self.loaded)}
        if any(metric.needs_prompts for metric in self.options.metrics):
            load_clip(self._clip_model)  # which may not be there: known before anything is sampled
        path, device = self.options.feature_extractor, self._device()
        needs_lpips = any(metric.kind == "lpips" for metric in self.options.metrics)
        self._lpips = load_lpips(device=device) if needs_lpips else None
        self.extractors = {
            name: load_extractor(name, path if name == INCEPTION else None, device) for name in self.options.extractors
        }
        for metric in self.options.metrics:
            if metric.needs_reference and metric.extractor not in self.references:
                assert metric.extractor is not None
                self.references[metric.extractor] = self._reference(self.extractors[metric.extractor])
            if metric.needs_reference:
                _check_reference(metric, self.references[str(metric.extractor)])

    def scores(self, denoiser: nn.Module | None, repeat: int) -> dict[str, float | None]:
        """The metrics of a repeat's images; denoiser None: of full precision's, where a pair is of itself."""
        wanted = self.options.metrics
        found: dict[str, float | None] = {}
        collectors = {name: StatisticsCollector(extractor) for name, extractor in self.extractors.items()}
        for batch in self._images(denoiser, repeat):  # the first time they are sampled, then read from the store
            for collector in collectors.values():
                collector.add(batch)
        for name, collector in collectors.items():
            metrics = [metric for metric in wanted if metric.extractor == name]
            found |= feature_scores(metrics, collector.statistics("samples"), self.references.get(name))
        for metric in wanted:
            if metric.paired and denoiser is not None:
                pairs = _in_step(self._images(denoiser, repeat), self._images(None, repeat))
                found[metric.name] = lpips(pairs, self._lpips) if metric.kind == "lpips" else psnr(pairs)
            if metric.needs_prompts:
                images = self._with_prompts(self._images(denoiser, repeat))
                found[metric.name] = clip_score(images, self._clip_model, device=self._device())
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                raise DmqError(f"{name!r} of these samples is {value}", hint="are the samples all alike?")
        return {metric.name: found[metric.name] for metric in wanted if metric.name in found}

    def _images(self, denoiser: nn.Module | None, repeat: int) -> Iterator[Tensor]:
        options = replace(self.sampling, seed=self.sampling.seed + repeat * self.options.samples)
        what = "sampling" if denoiser is not None else "sampling full precision"
        what += f" {repeat + 1}" if self.options.repeats > 1 else ""
        store = self._store(self.identities[0 if denoiser is None else 1], options)
        sampler = Sampler(self.loaded, options)
        return image_stream(sampler, self.options.samples, denoiser, store=store, what=what, progress=self.progress)

    def _store(self, identity: Mapping[str, Any], options: SamplerOptions) -> SampleStore:
        sampler = {key: value for key, value in asdict(options).items() if key != "batch"}
        device = self._device().split(":")[0]
        record = {"sampler": sampler, "device": device, "versions": package_versions(), **self._surroundings}
        return SampleStore(self.root, {**identity, **record})

    def _reference(self, extractor: FeatureExtractor) -> FeatureStatistics:
        options = self.options
        if options.reference == FULL_PRECISION:
            self.reference_name = FULL_PRECISION
            images = self._images(None, options.repeats)  # the set of seeds behind the last repeat
            return collect(extractor, images, FULL_PRECISION, total=options.samples, progress=self.progress)
        assert options.reference is not None
        self.reference_name = reference_name(options.reference, options.subset)
        return reference_statistics(
            options.reference, extractor, subset=options.subset, size=image_size(self.loaded), progress=self.progress
        )

    def _with_prompts(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, list[str]]]:
        prompts, done = self.sampling.prompts, 0
        for images in batches:
            yield images, [prompts[k % len(prompts)] for k in range(done, done + len(images))]
            done += len(images)

    @property
    def _clip_model(self) -> str:
        return self.options.clip_model or CLIP_MODEL

    def _device(self) -> str:
        return str(next(iter(self.loaded.denoiser.parameters())).device)


def _in_step(images: Iterator[Tensor], exact: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of batches of one size: what was stored may be in batches of another."""
    ours, theirs = (image for batch in images for image in batch), (image for batch in exact for image in batch)
    while pair := list(islice(zip(ours, theirs, strict=True), PAIRED)):
        a, b = zip(*pair, strict=True)
        yield torch.stack(a), torch.stack(b)
