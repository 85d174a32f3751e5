"""What this CPU multiplies, and how exactly."""

from __future__ import annotations

from typing import Any

import torch

onednn = torch.ops.onednn


def multiplies_exactly() -> bool:
    """Whether int8 products are summed without saturation here: CPUs before VNNI add pairs in 16 bits."""
    x = torch.full((1, 64, 1, 1), 255, dtype=torch.uint8)
    w = torch.full((16, 64, 1, 1), 127, dtype=torch.int8)
    one, zero = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    spread: Any = ([1, 1], [0, 0], [1, 1], 1)
    packed = onednn.qconv_prepack(w, one, 1.0, 0, *spread, list(x.shape))
    found = onednn.qconv_pointwise(x, 1.0, 0, packed, one, zero, None, *spread, 1.0, 0, torch.float32, "none", [], "")
    return bool((found == 64 * 255 * 127).all())
