"""Roles on small models written for one question each."""

import pytest
import torch
from catalog import FULL, TINY, tiny_sites
from expected import with_role
from torch import nn
from torch.nn import functional as F

from dmq_fx.roles import find_sites
from dmq_fx.sites import ROLES, Site
from dmq_fx.tracing import trace


def sites_of(model: nn.Module, **inputs: torch.Tensor) -> dict[str, Site]:
    return {site.name: site for site in find_sites(trace(model.eval(), inputs))}


@pytest.mark.parametrize("name", TINY)
def test_every_model(name: str) -> None:
    sites = tiny_sites(name)
    assert len(with_role(sites, "last")) == 1
    assert len(with_role(sites, "first")) >= 1
    assert len({site.name for site in sites}) == len(sites) == len({site.node for site in sites})
    for site in sites:
        assert list(site.roles) == [role for role in ROLES if role in site.roles]
        assert site.macs > 0
        assert site.split is None or 0 < site.split < site.shape[1]


def test_catalog_is_complete() -> None:
    assert len(TINY) >= 12
    assert len(FULL) >= 14


class Renamed(nn.Module):
    """A residual block whose input is a concat, with names that say nothing, or the wrong thing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.conv_shortcut, self.b = nn.Conv2d(10, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv1, self.out = nn.Conv2d(10, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        encoder = self.a(sample)
        x = torch.cat([F.silu(self.deep(encoder)), encoder], dim=1)
        return self.out(self.conv1(x) + self.b(F.silu(self.conv_shortcut(F.silu(x)))))


def test_roles_do_not_come_from_names() -> None:
    sites = sites_of(Renamed(), sample=torch.zeros(2, 2, 4, 4))
    assert sites["conv1"].roles == ("skip_concat", "skip_connection")
    assert sites["conv_shortcut"].roles == ("skip_concat", "block_in")
    assert sites["conv1"].split == sites["conv_shortcut"].split == 6
    assert sites["b"].roles == ("block_out",)
    assert sites["a"].roles == ("first",)
    assert sites["out"].roles == ("last",)


class Siblings(nn.Module):
    """A concat of two branches, of which neither is made from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.left(sample), self.right(sample)], dim=1))


def test_other_concats_are_no_skips() -> None:
    sites = sites_of(Siblings(), sample=torch.zeros(2, 2, 4, 4))
    assert sites["out"].roles == ("last",)
    assert sites["out"].split is None
    assert with_role(sites.values(), "first") == {"left", "right"}


class Attention(nn.Module):
    """Attention that is written out, with keys and values of a context."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.p, self.q, self.r = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.x(sample)
        scores = torch.bmm(self.p(x) * 0.5, self.q(context).transpose(1, 2)).softmax(-1)
        return self.out(x + self.r(torch.matmul(scores, context @ context.transpose(1, 2) @ self.q(context))))


def test_attention_that_is_written_out() -> None:
    sites = sites_of(Attention(), sample=torch.zeros(2, 5, 4), context=torch.zeros(2, 7, 3))
    assert sites["p"].roles == ("attention_qkv",)
    assert sites["q"].roles == sites["q@1"].roles == ("conditioning", "attention_qkv")
    assert sites["r"].roles == ("attention_out",)
    products = [site for site in sites.values() if site.op == "matmul"]
    assert [site.name for site in products] == ["matmul", "matmul@1", "matmul@2", "matmul@3"]
    assert all(site.roles == ("attention_matmul",) for site in products)
    assert sites["matmul"].macs == 5 * 7 * 4


class Embedded(nn.Module):
    """A class vector joins the timestep's; another vector of the text does not, and a shape is no dependence."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.label, self.scale, self.text = (
            nn.Linear(1, 4),
            nn.Linear(3, 4),
            nn.Linear(4, 4),
            nn.Linear(3, 4),
        )
        self.enter, self.leave = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor, text: torch.Tensor):
        t = timestep[:, None] * torch.ones_like(sample[:, 0, :1])
        embedding = F.silu(self.time(t) + self.label(label))
        x = self.enter(sample) * (1 + self.scale(embedding)[:, None])
        return self.leave(x + self.text(text)[:, None])


def test_embeddings() -> None:
    vectors = {"label": torch.zeros(2, 3), "text": torch.zeros(2, 3)}
    sites = sites_of(Embedded(), sample=torch.zeros(2, 5, 4), timestep=torch.zeros(2), **vectors)
    assert sites["time"].roles == ("time_embedding",)
    assert sites["label"].roles == ("time_embedding",)
    assert sites["scale"].roles == ("time_embedding", "modulation")
    assert sites["text"].roles == ("conditioning",)
    assert sites["enter"].roles == ("first",)


class Strided(nn.Module):
    """A grouped convolution with a stride, and one of a single position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(6, 2, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(sample))


def test_costs() -> None:
    sites = sites_of(Strided(), sample=torch.zeros(3, 4, 8, 8))
    assert sites["a"].macs == 6 * 4 * 4 * (2 * 3 * 3)
    assert sites["b"].macs == 2 * 4 * 4 * 6
    assert sites["a"].weight_shape == (6, 2, 3, 3)
    assert sites["a"].parameters == 108
