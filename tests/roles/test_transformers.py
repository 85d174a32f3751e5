"""Roles of transformers, tiny and as published, against their module names."""

import re

import pytest
from catalog import full_sites, tiny_sites
from expected import matching, with_role

from dmq_fx.sites import Site

TIME = r"(.*\.)?timestep_embedder\.linear_[12](@1)?"
NONE = "(?!)"
EXPECTED: dict[str, dict[str, str]] = {
    "dit": {
        "first": r"pos_embed\.proj",
        "last": "proj_out_2",
        "time_embedding": TIME + r"|.*\.norm1\.linear|proj_out_1",
        "modulation": r".*\.norm1\.linear|proj_out_1",
        "conditioning": NONE,
    },
    "pixart": {
        "first": r"pos_embed\.proj",
        "last": "proj_out",
        "time_embedding": r"adaln_single\..*",
        "modulation": r"adaln_single\.linear",
        "conditioning": r"caption_projection\..*|.*\.attn2\.to_[kv]",
    },
    "sd3": {
        "first": r"pos_embed\.proj",
        "last": "proj_out",
        "time_embedding": r"time_text_embed\..*|.*norm1(_context)?\.linear|norm_out\.linear",
        "modulation": r".*norm1(_context)?\.linear|norm_out\.linear",
        "conditioning": "context_embedder",
    },
    "flux": {
        "first": "x_embedder",
        "last": "proj_out",
        "time_embedding": r"time_text_embed\..*|.*norm1?(_context)?\.linear|norm_out\.linear",
        "modulation": r".*norm1?(_context)?\.linear|norm_out\.linear",
        "conditioning": "context_embedder",
        "attention_out": r".*\.to_out\.0|.*\.to_add_out|single_transformer_blocks\..*\.proj_out",
        "feed_forward": r".*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\..*\.(proj_mlp|proj_out)",
    },
    "sana": {
        "first": r"patch_embed\.proj",
        "last": "proj_out",
        "time_embedding": r"time_embed\..*",
        "modulation": r"time_embed\.linear",
        "conditioning": r"caption_projection\..*|.*\.attn2\.to_[kv]",
        "attention_matmul": r".*\.attn1\.matmul(@1)?|.*\.attn2\.attention",
        "feed_forward": r".*\.ff\.conv_(inverted|depth|point)",
    },
    "hunyuan-dit": {
        "first": r"pos_embed\.proj",
        "last": "proj_out",
        "time_embedding": r"time_extra_emb\.(timestep_embedder|extra_embedder)\..*|time_extra_emb\.pooler\.c_proj"
        r"|blocks\..*\.norm1\.linear|norm_out\.linear",
        "modulation": r"norm_out\.linear",
        "conditioning": r"text_embedder\..*|.*\.attn2\.to_[kv]|time_extra_emb\.pooler\.[qkv]_proj",
        "attention_qkv": r".*\.to_[qkv]|time_extra_emb\.pooler\.[qkv]_proj",
        "attention_out": r".*\.to_out\.0|time_extra_emb\.pooler\.c_proj",
        "skip_concat": r"blocks\..*\.skip_linear",
    },
    "cogvideox": {
        "first": r"patch_embed\.proj",
        "last": "proj_out",
        "time_embedding": r"time_embedding\.linear_[12]|.*\.norm[12]\.linear|norm_out\.linear",
        "modulation": r".*\.norm[12]\.linear|norm_out\.linear",
        "conditioning": r"patch_embed\.text_proj",
    },
    "wan": {
        "first": "patch_embedding",
        "last": "proj_out",
        "time_embedding": r"condition_embedder\.time_.*",
        "modulation": r"condition_embedder\.time_proj",
        "conditioning": r"condition_embedder\.text_embedder\..*|.*\.attn2\.to_[kv]",
    },
}
"""Patterns of names by role; for roles that are not listed those of COMMON hold."""

COMMON = {
    "attention_qkv": r".*\.(to_[qkv]|add_[qkv]_proj)",
    "attention_out": r".*\.(to_out\.0|to_add_out)",
    "attention_matmul": r".*\.attention",
    "feed_forward": r".*\.ffn?(_context)?\.net\.(0\.proj|2)",
    "skip_concat": NONE,
    "skip_connection": NONE,
    "upsample": NONE,
    "downsample": NONE,
}

CASES = [
    ("dit", "dit", False),
    ("pixart", "pixart-alpha", False),
    ("pixart", "pixart-sigma", False),
    ("sd3", "sd3", False),
    ("flux", "flux", False),
    ("sana", "sana", False),
    ("hunyuan-dit", "hunyuan-dit", False),
    ("cogvideox", "cogvideox", False),
    ("wan", "wan", False),
    *(
        pytest.param(family, name, True, marks=pytest.mark.slow)
        for family, name in [
            ("dit", "dit-xl-2-256"),
            ("pixart", "pixart-alpha-1024"),
            ("pixart", "pixart-sigma-1024"),
            ("sd3", "sd3-medium"),
            ("flux", "flux1-dev"),
            ("sana", "sana-1600m-1024"),
            ("hunyuan-dit", "hunyuan-dit"),
            ("cogvideox", "cogvideox-2b"),
            ("wan", "wan21-1.3b"),
        ]
    ),
]


@pytest.mark.parametrize(("family", "name", "full"), CASES)
def test_roles_of_a_transformer(family: str, name: str, full: bool) -> None:
    sites = full_sites(name) if full else tiny_sites(name)
    for role, pattern in {**COMMON, **EXPECTED[family]}.items():
        assert with_role(sites, role) == matching(sites, pattern), role
    assert all(site.roles for site in sites)


def test_blocks_without_attention_are_feed_forward_blocks() -> None:
    sites = tiny_sites("dit")
    assert with_role(sites, "block_in") == matching(sites, r".*\.ff\.net\.0\.proj")
    assert with_role(sites, "block_out") == matching(sites, r".*\.ff\.net\.2")


def test_module_that_is_called_twice_has_two_sites_and_one_weight() -> None:
    """DiT's last layer calls the first block's timestep embedder again."""
    sites: dict[str, Site] = {site.name: site for site in tiny_sites("dit")}
    name = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"
    assert sites[name].weight == sites[f"{name}@1"].weight == f"{name}.weight"
    assert sites[name].node != sites[f"{name}@1"].node


def test_linear_attention_is_two_products() -> None:
    products = [site for site in tiny_sites("sana") if site.op == "matmul"]
    assert [re.sub(r"^.*\.attn1", "attn1", site.name) for site in products[:2]] == ["attn1.matmul", "attn1.matmul@1"]
    assert products[0].operands == (0, 1)


def test_split_of_a_transformers_long_skip() -> None:
    (skip,) = [site for site in tiny_sites("hunyuan-dit") if "skip_concat" in site.roles]
    assert skip.split == skip.shape[1] // 2 == 16
