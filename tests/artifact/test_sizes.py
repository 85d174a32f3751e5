"""Sizes as papers count them; of whole artifacts in tests/passes/test_allocation_passes.py."""

import pytest

from dmq_fx.planning import Plan, PlannedSite
from dmq_fx.planning.paper_size import body_bits, paper_bytes
from dmq_fx.recipe.language import WeightSpec
from dmq_fx.sites import Site


def planned(name, shape, scheme, bits, widths=()):
    site = Site(name, "linear", name, (), (0,), f"{name}.weight", None, shape, 0, False)
    weight = WeightSpec(bits=bits, symmetric=False) if bits else None
    return PlannedSite(site, 0, scheme, weight, None, (), widths=widths)


@pytest.mark.parametrize(
    ("parameters", "mebibytes", "plus"),
    [(400_920_579, 95.6, 4.78), (274_056_163, 65.3, 3.27), (294_966_916, 70.3, 3.52), (859_520_964, 204.9, 10.25)],
)
def test_the_columns_of_the_paper(parameters, mebibytes, plus):
    """T25: every parameter at 2 bits, whatever stays at 8 or in full precision; MPQ-DM+ adds a tenth of a bit."""
    rest = [planned("first", (10, 10), "boundary", 8), planned("skip", (10, 90), "none", 0)]
    two = Plan((planned("body", (100, 10), "body", 2), *rest), parameters)
    assert body_bits(two) == 2.0
    assert paper_bytes(two) / 2**20 == pytest.approx(mebibytes, abs=0.05)
    more = planned("body", (100, 10), "body", 2, widths=((1, 10), (2, 70), (3, 20)))
    added = paper_bytes(Plan((more, *rest), parameters)) - paper_bytes(two)
    assert added / 2**20 == pytest.approx(plus, abs=0.006)


def test_bytes_of_a_site_with_channels_of_their_own_bits():
    """Packed integers of each width, two bits a channel that say which, five bytes for each scale and zero point."""
    site = planned("body", (100, 10), "body", 2, widths=((1, 10), (2, 70), (3, 20)))
    assert site.integer_bytes == 13 + 175 + 75 + 25
    assert site.bytes == site.integer_bytes + 500
    assert site.weight_bits == 2.1 and site.widest_bits == 3
    assert planned("body", (100, 10), "body", 2, widths=((3, 100),)).integer_bytes == 375


def test_a_model_without_weights_is_in_full_precision():
    assert body_bits(Plan((), 5)) == 32.0 and paper_bytes(Plan((), 5)) == 20
