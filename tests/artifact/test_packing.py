import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmq_fx.artifact import packing
from dmq_fx.artifact.packing import pack, pack_rows, packed_rows_size, packed_size, unpack, unpack_rows
from dmq_fx.errors import ArtifactError, InternalError

shapes = st.lists(st.integers(0, 7), max_size=4)


@st.composite
def integers(draw):
    """(values, bits, offset): random integers of a random shape that fit."""
    bits, offset = draw(st.integers(1, 8)), draw(st.integers(-200, 200))
    shape, seed = draw(shapes), draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(offset, offset + 2**bits, shape, generator=generator), bits, offset


@given(integers())
def test_unpack_is_the_inverse_of_pack(case):
    values, bits, offset = case
    packed = pack(values, bits, offset=offset)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(values.numel(), bits),)
    back = unpack(packed, bits, values.shape, offset=offset, dtype=torch.int16)
    assert back.dtype == torch.int16
    assert back.shape == values.shape
    assert torch.equal(back.long(), values)


@given(integers())
def test_layout_is_little_endian_groups_of_eight(case):
    values, bits, offset = case
    flat = [value - offset for value in values.flatten().tolist()]
    expected = b""
    for start in range(0, len(flat), 8):
        word = sum(value << (i * bits) for i, value in enumerate(flat[start : start + 8]))
        expected += word.to_bytes(bits, "little")
    assert bytes(pack(values, bits, offset=offset).tolist()) == expected


@given(st.integers(0, 10**12), st.integers(1, 8))
def test_packed_size_formula(count, bits):
    assert packed_size(count, bits) == math.ceil(count / 8) * bits


@pytest.mark.parametrize(
    ("values", "bits", "offset", "expected"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 1, 1], 1, 0, "8101"),
        ([-1, 0, 1, 2, -1, 0, 1, 2], 2, -1, "e4e4"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 3, 0, "88c6fa"),
        ([-8, 7, -7, 6, 0, 0, 0, 0], 4, -8, "f0e18888"),
        ([-8, 7, -7], 4, -8, "f0010000"),
        ([0, 31], 5, 0, "e003000000"),
        ([0, 255, 128], 8, 0, "00ff800000000000"),
        ([-128, 127], 8, -128, "00ff000000000000"),
        ([], 4, -8, ""),
    ],
)
def test_golden_bytes(values, bits, offset, expected):
    packed = pack(torch.tensor(values, dtype=torch.int64), bits, offset=offset)
    assert bytes(packed.tolist()).hex() == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_chunks_join(bits, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_VALUES", 16)
    values = torch.randint(0, 2**bits, (5, 21), generator=torch.Generator().manual_seed(bits))
    packed = pack(values, bits, offset=0)
    monkeypatch.undo()
    assert torch.equal(packed, pack(values, bits, offset=0))
    monkeypatch.setattr(packing, "CHUNK_VALUES", 16)
    assert torch.equal(unpack(packed, bits, (5, 21), offset=0), values)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_packs_and_unpacks(dtype):
    values = torch.arange(16, dtype=dtype).reshape(2, 8).t()  # not contiguous
    packed = pack(values, 4, offset=0)
    back = unpack(packed, 4, (8, 2), offset=0, dtype=dtype)
    assert back.dtype == dtype
    assert torch.equal(back, values)


def test_scalar_round_trip():
    back = unpack(pack(torch.tensor(-3), 3, offset=-4), 3, (), offset=-4)
    assert back.shape == ()
    assert back.item() == -3


def test_values_out_of_range_are_named():
    with pytest.raises(
        InternalError, match=r"values in \[-9, 7\] do not fit in 4 bits from -8: the range is \[-8, 7\]"
    ):
        pack(torch.tensor([-9, 7]), 4, offset=-8)
    with pytest.raises(InternalError, match=r"values in \[0, 16\] do not fit"):
        pack(torch.tensor([0, 16]), 4, offset=0)


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(3, dtype=torch.bool)])
def test_only_integers_are_packed(values):
    with pytest.raises(InternalError, match="only integers can be packed, not torch"):
        pack(values, 4, offset=0)


@pytest.mark.parametrize("bits", [0, 9, True, 4.0])
def test_unknown_widths_are_refused(bits):
    with pytest.raises(InternalError, match="packing knows 1 to 8 bits"):
        pack(torch.zeros(3, dtype=torch.int8), bits, offset=0)
    with pytest.raises(ArtifactError, match="packing knows 1 to 8 bits"):
        unpack(torch.zeros(4, dtype=torch.uint8), bits, (3,), offset=0)


def test_unpack_refuses_what_pack_does_not_write():
    good = pack(torch.arange(9), 4, offset=0)
    with pytest.raises(ArtifactError, match=r"9 values of 4 bits \(shape \[9\]\) take 8 bytes, got 7"):
        unpack(good[:-1], 4, (9,), offset=0)
    with pytest.raises(ArtifactError, match="take 12 bytes, got 8"):
        unpack(good, 4, (17,), offset=0)
    with pytest.raises(ArtifactError, match="take 4 bytes, got 8"):
        unpack(good, 4, (8,), offset=0)
    with pytest.raises(ArtifactError, match=r"one-dimensional uint8, got torch.int8 of shape \[8\]"):
        unpack(good.view(torch.int8), 4, (9,), offset=0)
    with pytest.raises(ArtifactError, match=r"got torch.uint8 of shape \[2, 4\]"):
        unpack(good.reshape(2, 4), 4, (9,), offset=0)
    with pytest.raises(ArtifactError, match="negative size"):
        unpack(good, 4, (-3, -3), offset=0)


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 7), st.data())
def test_nonzero_padding_is_refused(bits, count, data):
    packed = pack(torch.zeros(count, dtype=torch.int8), bits, offset=0)
    bit = data.draw(st.integers(count * bits, 8 * bits - 1))
    packed[bit // 8] |= 1 << bit % 8
    with pytest.raises(ArtifactError, match=f"the padding after {count} values of {bits} bits is not zero"):
        unpack(packed, bits, (count,), offset=0)


def test_unpack_refuses_a_dtype_that_cannot_hold_the_range():
    packed = pack(torch.tensor([200]), 8, offset=0)
    with pytest.raises(InternalError, match=r"torch.int8 cannot hold the range \[0, 255\]"):
        unpack(packed, 8, (1,), offset=0, dtype=torch.int8)
    with pytest.raises(InternalError, match=r"integer dtype, not into torch\.float32"):
        unpack(packed, 8, (1,), offset=0, dtype=torch.float32)


@st.composite
def rows_of_widths(draw):
    """(values, bits, symmetric): rows of random integers, each of its own width."""
    symmetric = draw(st.booleans())
    bits = torch.tensor(draw(st.lists(st.integers(2 if symmetric else 1, 8), min_size=1, max_size=9)))
    shape = (len(bits), *draw(st.lists(st.integers(1, 5), max_size=3)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    column = bits.reshape(-1, *[1] * (len(shape) - 1))
    values = (torch.rand(shape, generator=generator) * 2**column).floor().long()
    return values - (2 ** (column - 1) if symmetric else 0), bits, symmetric


@given(rows_of_widths())
def test_rows_of_their_own_widths_come_back(case):
    values, bits, symmetric = case
    packed = pack_rows(values, bits, symmetric=symmetric)
    columns = values[0].numel()
    honest = sum(math.ceil(columns * int((bits == width).sum()) / 8) * width for width in bits.unique().tolist())
    assert packed.dtype == torch.uint8 and packed.shape == (honest,) == (packed_rows_size(columns, bits),)
    back = unpack_rows(packed, bits, values.shape, symmetric=symmetric, dtype=torch.int16)
    assert back.dtype == torch.int16 and torch.equal(back.long(), values)


def test_rows_of_one_width_are_packed_as_a_whole():
    values = torch.arange(12).reshape(4, 3) % 8
    uniform = pack_rows(values, torch.full((4,), 3), symmetric=False)
    assert torch.equal(uniform, pack(values, 3, offset=0))
    mixed = pack_rows(values % 2, torch.tensor([3, 1, 3, 1]), symmetric=False)
    parts = [pack(values[[1, 3]] % 2, 1, offset=0), pack(values[[0, 2]] % 2, 3, offset=0)]
    assert torch.equal(mixed, torch.cat(parts))


def test_rows_that_do_not_fit_their_widths():
    with pytest.raises(InternalError, match=r"values in \[0, 2\] do not fit in 1 bits from 0"):
        pack_rows(torch.tensor([[3, 3], [0, 2]]), torch.tensor([2, 1]), symmetric=False)
    packed = pack_rows(torch.tensor([[3, 3], [0, 1]]), torch.tensor([2, 1]), symmetric=False)
    unpacked = {"symmetric": False, "dtype": torch.uint8}
    with pytest.raises(ArtifactError, match=r"rows of 2 values of {1: 1, 2: 1} bits .* take 3 bytes, got \[2\]"):
        unpack_rows(packed[1:], torch.tensor([2, 1]), (2, 2), **unpacked)
    with pytest.raises(ArtifactError, match=r"bits of shape \[2\] are not those of the rows of a tensor \[3, 2\]"):
        unpack_rows(packed, torch.tensor([2, 1]), (3, 2), **unpacked)
