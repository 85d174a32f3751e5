"""Integers, scales and ranges: the arithmetic that every other part agrees on."""

from dmq_fx.numerics.grid import ChannelGrid, Grid, IntegerGrid
from dmq_fx.numerics.qparams import QParams, qparams
from dmq_fx.numerics.quantize import dequantize, quantize
from dmq_fx.numerics.weights import QuantizedWeight, quantize_weight, weight_grid

__all__ = [
    "ChannelGrid",
    "Grid",
    "IntegerGrid",
    "QParams",
    "QuantizedWeight",
    "dequantize",
    "qparams",
    "quantize",
    "quantize_weight",
    "weight_grid",
]
