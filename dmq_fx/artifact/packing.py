"""Bit packing: the one place that knows how integers of 1 to 8 bits lie in bytes.

Eight consecutive values form a group, and a group of `bits`-bit values takes exactly `bits` bytes. Read as a
little-endian integer, a group holds value i at bit `i * bits`; what is stored is `value - offset`. A last group
that is not full is filled up with zeros. At 8 bits this is the plain bytes, at 4 bits the usual nibbles, low first.

Both directions work in chunks: the memory beside input and output does not depend on the number of values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from dmq_fx.errors import ArtifactError, DmqError, InternalError

GROUP = 8
"""Values in a group: the smallest number that fills whole bytes at every width."""

CHUNK_VALUES = 2**20
"""Values worked on at once; a multiple of GROUP. About 10 MB of scratch memory."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take: `ceil(count / 8) * bits`."""
    _check_bits(bits, InternalError)
    if count < 0:
        raise InternalError(f"a number of values cannot be negative: {count}")
    return -(-count // GROUP) * bits


def pack(values: torch.Tensor, bits: int, *, offset: int) -> torch.Tensor:
    """Pack integers of any shape, in row-major order, into uint8 [packed_size(values.numel(), bits)].

    `offset` is the smallest value that can be stored, `offset + 2**bits - 1` the largest. Raises InternalError for
    a value outside of that, and for a dtype that is not one of the signed integers or uint8.
    """
    _check_bits(bits, InternalError)
    if values.dtype not in _INTEGERS:
        raise InternalError(f"only integers can be packed, not {values.dtype}")
    flat = values.detach().cpu().reshape(-1).numpy()
    if flat.size:
        lowest, highest = int(flat.min()), int(flat.max())
        if lowest < offset or highest > offset + 2**bits - 1:
            raise InternalError(
                f"values in [{lowest}, {highest}] do not fit in {bits} bits from {offset}: "
                f"the range is [{offset}, {offset + 2**bits - 1}]"
            )
    packed = np.empty(packed_size(flat.size, bits), dtype=np.uint8)
    for start in range(0, flat.size, CHUNK_VALUES):
        chunk = flat[start : start + CHUNK_VALUES].astype(np.uint8)  # modulo 256, as is the difference
        groups = np.zeros((-(-chunk.size // GROUP), GROUP), dtype=np.uint8)
        groups.reshape(-1)[: chunk.size] = chunk - np.uint8(offset % 256)
        word = _squeezed(groups.reshape(-1).view("<u8"), bits)
        first = start // GROUP * bits
        packed[first : first + len(groups) * bits] = word.view(np.uint8).reshape(-1, GROUP)[:, :bits].reshape(-1)
    return torch.from_numpy(packed)


def unpack(
    packed: torch.Tensor, bits: int, shape: Sequence[int], *, offset: int, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """The integers that `pack` was given, as `dtype` [*shape]; `packed` is uint8 [packed_size(numel, bits)].

    Raises ArtifactError if `packed` cannot be what `pack` writes for this shape and width (another dtype, another
    length, padding that is not zero), InternalError if `dtype` cannot hold every value of the range.
    """
    _check_bits(bits, ArtifactError)
    if dtype not in _INTEGERS:
        raise InternalError(f"integers are unpacked into an integer dtype, not into {dtype}")
    limits = torch.iinfo(dtype)
    if offset < limits.min or offset + 2**bits - 1 > limits.max:
        raise InternalError(f"{dtype} cannot hold the range [{offset}, {offset + 2**bits - 1}]")
    if any(size < 0 for size in shape):
        raise ArtifactError(f"a shape cannot have a negative size: {list(shape)}")
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise ArtifactError(
            f"packed values must be one-dimensional uint8, got {packed.dtype} of shape {list(packed.shape)}"
        )
    if packed.numel() != packed_size(count, bits):
        raise ArtifactError(
            f"{count} values of {bits} bits (shape {list(shape)}) take {packed_size(count, bits)} bytes, "
            f"got {packed.numel()}"
        )
    stored = packed.detach().cpu().numpy()
    values = torch.empty(count, dtype=dtype)
    into = values.numpy()
    wide = np.int16 if dtype in (torch.uint8, torch.int8) else into.dtype
    for start in range(0, count, CHUNK_VALUES):
        size = min(CHUNK_VALUES, count - start)
        groups = np.zeros((-(-size // GROUP), GROUP), dtype=np.uint8)
        first = start // GROUP * bits
        groups[:, :bits] = stored[first : first + len(groups) * bits].reshape(-1, bits)
        flat = _spread(groups.reshape(-1).view("<u8"), bits).view(np.uint8)
        if flat[size:].any():
            raise ArtifactError(f"the padding after {count} values of {bits} bits is not zero")
        np.add(flat[:size], offset, out=into[start : start + size], dtype=wide, casting="unsafe")
    return values.reshape(tuple(shape))


_LANES = ((16, 0x00FF00FF00FF00FF), (32, 0x0000FFFF0000FFFF), (64, 0x00000000FFFFFFFF))
"""Lanes of a word in bits, and the lower half of each."""


def _squeezed(word: np.ndarray, bits: int) -> np.ndarray:
    """Words of 8 bytes, a value each, to words of 8 values of `bits` bits: halves of ever wider lanes move together."""
    width = bits
    for lane, lower in _LANES:
        word = (word & np.uint64(lower)) | ((word >> np.uint64(lane // 2)) & np.uint64(lower)) << np.uint64(width)
        width *= 2
    return word


def _spread(word: np.ndarray, bits: int) -> np.ndarray:
    """What `_squeezed` was given."""
    for lane, lower in reversed(_LANES):
        width = bits * lane // 16
        held = np.uint64(lower & sum((2**width - 1) << start for start in range(0, 64, lane)))
        word = (word & held) | ((word >> np.uint64(width)) & held) << np.uint64(lane // 2)
    return word


def packed_rows_size(columns: int, bits: torch.Tensor) -> int:
    """Bytes that rows of `columns` values take, each of its own bits, [rows]."""
    return sum(packed_size(int((bits == width).sum()) * columns, width) for width in _widths(bits))


def pack_rows(values: torch.Tensor, bits: torch.Tensor, *, symmetric: bool) -> torch.Tensor:
    """Pack rows of values, [rows, ...], each at its own width, int [rows], into uint8 [packed_rows_size].

    The rows of one width lie together, narrowest first, in their order. symmetric: a row's smallest value is
    -2^(bits - 1), else 0. Raises InternalError as `pack`.
    """
    rows = values.detach().cpu().reshape(len(bits), -1)
    bits = bits.cpu()
    parts = [pack(rows[bits == width], width, offset=_offset(width, symmetric)) for width in _widths(bits)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def unpack_rows(
    packed: torch.Tensor, bits: torch.Tensor, shape: Sequence[int], *, symmetric: bool, dtype: torch.dtype
) -> torch.Tensor:
    """The values that `pack_rows` was given, as `dtype` [*shape].

    Raises ArtifactError and InternalError as `unpack`.
    """
    if len(shape) < 1 or bits.dim() != 1 or len(bits) != shape[0]:
        raise ArtifactError(f"bits of shape {list(bits.shape)} are not those of the rows of a tensor {list(shape)}")
    bits, columns = bits.cpu(), math.prod(shape[1:])
    if packed.dim() != 1 or packed.numel() != packed_rows_size(columns, bits):
        raise ArtifactError(
            f"rows of {columns} values of {dict(_counts(bits))} bits (shape {list(shape)}) take "
            f"{packed_rows_size(columns, bits)} bytes, got {list(packed.shape)}"
        )
    rows = torch.empty(shape[0], columns, dtype=dtype)
    start = 0
    for width, count in _counts(bits):
        size = packed_size(count * columns, width)
        part = packed[start : start + size]
        rows[bits == width] = unpack(part, width, (count, columns), offset=_offset(width, symmetric), dtype=dtype)
        start += size
    return rows.reshape(tuple(shape))


def _widths(bits: torch.Tensor) -> list[int]:
    return sorted(set(bits.tolist()))


def _counts(bits: torch.Tensor) -> list[tuple[int, int]]:
    return [(width, int((bits == width).sum())) for width in _widths(bits)]


def _offset(width: int, symmetric: bool) -> int:
    return -(2 ** (width - 1)) if symmetric else 0


def _check_bits(bits: int, error: type[DmqError]) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise error(f"packing knows 1 to 8 bits, not {bits!r}")
