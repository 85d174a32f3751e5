"""Names of metrics: what they stand for, and what is said about those that stand for nothing."""

import subprocess
import sys

import pytest

from dmq_fx.errors import DmqError
from dmq_fx.quality.metric_names import METRICS, Metric, parse_metrics


def test_names_say_the_kind_and_the_features() -> None:
    assert parse_metrics("fid, sfd-mnist,is-cifar10,precision,psnr") == (
        Metric("fid", "frechet_distance", "inception"),
        Metric("sfd-mnist", "spatial_frechet_distance", "mnist"),
        Metric("is-cifar10", "inception_score", "cifar10"),
        Metric("precision", "precision", "inception"),
        Metric("psnr", "psnr", None),
    )


def test_only_inceptions_features_have_the_literatures_names() -> None:
    names = {metric.name: metric.extractor for metric in METRICS}
    assert {name for name, extractor in names.items() if extractor == "inception"} == {
        *("fid", "sfid", "is", "precision", "recall")
    }
    for own in ("mnist", "cifar10"):
        stems = {name.removesuffix(f"-{own}") for name, extractor in names.items() if extractor == own}
        assert stems == {"fd", "sfd", "is", "precision", "recall"}
    assert len(names) == len(METRICS)


def test_a_metric_says_what_it_needs() -> None:
    known = {metric.name: metric for metric in METRICS}
    assert [m.name for m in METRICS if m.needs_reference and m.extractor == "mnist"] == [
        *("fd-mnist", "sfd-mnist", "precision-mnist", "recall-mnist")
    ]
    assert {m.name for m in METRICS if m.paired} == {"psnr", "lpips"}
    assert {m.name for m in METRICS if m.needs_prompts} == {"clip"}
    assert known["is"].higher_is_better and not known["fid"].higher_is_better and not known["lpips"].higher_is_better


def test_a_name_counts_once_and_a_list_is_as_good_as_text() -> None:
    assert [m.name for m in parse_metrics(["fd-mnist", "psnr", "fd-mnist"])] == ["fd-mnist", "psnr"]
    assert [m.name for m in parse_metrics("psnr,,")] == ["psnr"]


def test_an_unknown_name_is_an_error_with_the_nearest_and_all_known() -> None:
    with pytest.raises(DmqError, match="--metrics: unknown metric 'fid-mnist'") as caught:
        parse_metrics("psnr,fid-mnist")
    assert caught.value.hint is not None
    assert "did you mean 'fd-mnist' or 'sfd-mnist'" in caught.value.hint
    assert caught.value.hint.endswith(f"known: {', '.join(metric.name for metric in METRICS)}")
    with pytest.raises(DmqError, match=r"unknown metric 'FVD'\n  hint: known: fid, sfid"):
        parse_metrics("FVD")
    with pytest.raises(DmqError, match="no metric is named"):
        parse_metrics(" , ")


def test_names_need_no_torch_and_scores_none_of_the_extras_libraries() -> None:
    code = (
        "import sys, dmq_fx.quality.metric_names; assert 'torch' not in sys.modules\n"
        "import dmq_fx.quality.scores, dmq_fx.quality.image_scores, dmq_fx.quality.reference\n"
        "sys.exit(', '.join({'torchmetrics', 'prdc', 'sklearn', 'transformers'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
