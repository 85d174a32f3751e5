"""Roles of UNets against the rules of diffusers' constructors."""

import pytest
from catalog import FULL, full_sites, tiny_model, tiny_sites
from expected import matching, unet_splits, with_role

from dmq_fx.models import config_of, load_denoiser_on_meta
from dmq_fx.sites import Site

TINY_UNETS = ["ddpm", "ddpm-class", "sd", "sdxl"]
FULL_UNETS = ["ddpm-cifar10", "ddpm-lsun-256", "ldm-celebahq-256", "ldm-4-imagenet", "ldm-8-text", "sd15", "sdxl"]
CASES = [("tiny", name) for name in TINY_UNETS] + [
    pytest.param(("full", name), marks=pytest.mark.slow) for name in FULL_UNETS
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[tuple[Site, ...], dict]:
    """Sites and config of a UNet."""
    kind, name = request.param
    if kind == "tiny":
        return tiny_sites(name), config_of(tiny_model(name, device="meta"))
    return full_sites(name), load_denoiser_on_meta(f"config:{FULL[name]}").config


def test_roles_of_a_unet(case: tuple[tuple[Site, ...], dict]) -> None:
    sites, config = case
    splits = unet_splits(config)
    levels = len(config["block_out_channels"])

    assert {site.name: site.split for site in sites if "skip_connection" in site.roles} == splits
    concat = {*splits, *(name.replace("conv_shortcut", "conv1") for name in splits)}
    assert with_role(sites, "skip_concat") == concat
    assert {site.name for site in sites if site.split is not None} == concat

    assert with_role(sites, "first") == {"conv_in"}
    assert with_role(sites, "last") == {"conv_out"}
    assert with_role(sites, "time_embedding") == matching(sites, r"(time|add)_embedding\.linear_[12]|.*\.time_emb_proj")
    scaled = config.get("resnet_time_scale_shift") == "scale_shift"
    assert with_role(sites, "modulation") == (matching(sites, r".*\.time_emb_proj") if scaled else set())
    assert with_role(sites, "conditioning") == matching(sites, r".*\.attn2\.to_[kv]")
    assert with_role(sites, "attention_qkv") == matching(sites, r".*\.to_[qkv]")
    assert with_role(sites, "attention_out") == matching(sites, r".*\.to_out\.0")
    assert with_role(sites, "attention_matmul") == matching(sites, r".*\.attention")
    assert len(with_role(sites, "attention_qkv")) == 3 * len(with_role(sites, "attention_matmul"))
    assert with_role(sites, "feed_forward") == matching(sites, r".*\.ff\.net\.(0\.proj|2)")
    assert with_role(sites, "upsample") == {f"up_blocks.{level}.upsamplers.0.conv" for level in range(levels - 1)}
    assert with_role(sites, "downsample") == {f"down_blocks.{level}.downsamplers.0.conv" for level in range(levels - 1)}
    assert with_role(sites, "block_in") == matching(sites, r".*\.conv1|.*\.proj_in|.*\.ff\.net\.0\.proj")
    assert with_role(sites, "block_out") == matching(sites, r".*\.conv2|.*\.proj_out|.*\.ff\.net\.2")

    without = {site.name for site in sites if not site.roles}
    assert without == matching(sites, r"down_blocks\..*\.conv_shortcut")


def test_padding_and_operands() -> None:
    for site in tiny_sites("ddpm"):
        assert site.pads == (site.op == "conv2d" and site.shape[2:] == (3, 3)), site.name
        assert site.operands == ((0, 1, 2) if site.op == "attention" else (0,))
        assert (site.weight is None) == (site.op == "attention")
        if site.weight is not None:
            assert (site.weight, site.bias) == (f"{site.name}.weight", f"{site.name}.bias")
    biasless = [site for site in tiny_sites("sd") if site.name.endswith("attn1.to_q")]
    assert biasless
    assert all(site.bias is None for site in biasless)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gigamacs"),
    [("ddpm-cifar10", 6.1), ("sd15", 401.0), ("dit-xl-2-256", 118.6), ("flux1-dev", 37195.0)],
)
def test_published_costs(name: str, gigamacs: float) -> None:
    """Costs of one step as published: Q-Diffusion (DDPM), DiT's paper, and 50 steps of Flux at 3719.50 TFLOPs."""
    assert sum(site.macs for site in full_sites(name)) / 1e9 == pytest.approx(gigamacs, rel=0.02)
