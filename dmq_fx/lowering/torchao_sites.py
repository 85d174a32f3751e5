"""Linears of a quantized graph become calls of `torch.nn.functional.linear` on torchao's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor, PerRow

from dmq_fx.lowering.kernels import Kernel
from dmq_fx.lowering.torchao_tensors import (
    ACTIVATION_BITS,
    StaticRange,
    grid_offset,
    of_samples,
    weight_only,
    weight_only_grouped,
    with_static_range,
    without_range,
)
from dmq_fx.numerics import IntegerGrid
from dmq_fx.planning import PlannedSite
from dmq_fx.program.convert_weights import placed_weights
from dmq_fx.program.graph_tools import (
    call_arguments,
    compute_dtype,
    drop_unread_tensors,
    finish,
    get_tensor,
    nodes_by_name,
    record,
    set_buffer,
)
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import largest_shift
from dmq_fx.recipe.language import WeightSpec

aten = torch.ops.aten
qd = torch.ops.quantized_decomposed

WEIGHT_ONLY = "torchao Int8Tensor weight-only"
GROUPED = "torchao IntxUnpackedToInt8Tensor weight-only"
STATIC = "torchao Int8Tensor static int8"
BY_TIMESTEP = "torchao Int8Tensor int8 by timestep"
INTEGER_PRODUCTS = (STATIC, BY_TIMESTEP)
"""Kernels that multiply integers by integers."""

MULTIPLE = 8
"""What inputs and outputs of an int8 product are multiples of: CUDA's (`torch._int_mm`) takes no others."""

ROWS = 16
"""CUDA's int8 product wants more rows than these; compiled code fails, and torchao multiplies in float32 else."""


def torchao_kernels(program: Program) -> dict[str, Kernel]:
    """The tensor of torchao's that every site gets, or why none; needs a program whose activations are grouped."""
    nodes = nodes_by_name(program.traced.graph)
    return {p.name: _kernel(program, p, nodes[p.site.node]) for p in program.plan.sites}


def _kernel(program: Program, planned: PlannedSite, node: fx.Node) -> Kernel:
    weight, activation = planned.weight, program.activation_of(planned, 0)
    if weight is None and planned.activation is None:
        return Kernel(None, "full precision")
    if planned.site.weight is None:
        return Kernel(None, "a product of two activations: torchao's tensors are weights of linears")
    if node.target is not aten.linear.default:
        return Kernel(None, f"torchao has no int8 kernel for {planned.site.op}")
    if weight is None:
        return Kernel(None, "its weights are in full precision")
    if activation is None:
        plain = weight.symmetric and weight.granularity != "per_group"
        # products with integers, before the scales, may leave the range of float16
        return Kernel(WEIGHT_ONLY if plain and compute_dtype(node) != torch.float16 else GROUPED)
    reason = _why_no_product(program, planned, weight, activation)
    if reason:
        return Kernel(None, reason)
    return Kernel(BY_TIMESTEP if activation.spec.per_timestep else STATIC)


def _why_no_product(program: Program, planned: PlannedSite, weight: WeightSpec, activation: Activation) -> str:
    """Why integers cannot be multiplied; empty if they can."""
    bits, (outputs, inputs) = activation.spec.bits, planned.site.shape
    if weight.granularity == "per_group":
        return "its weights have a scale for every group of inputs: torchao's int8 product has one for every output"
    if not weight.symmetric and planned.widest_bits > 7:
        return "8-bit weights less their zero point do not fit int8 (symmetric ones do, and 7 bits)"
    if bits not in ACTIVATION_BITS:
        return f"torchao's Int8Tensor rounds activations to 8 bits or to 7, not to {bits}"
    if outputs % MULTIPLE or inputs % MULTIPLE:
        return f"its weights are [{outputs}, {inputs}]: torchao's int8 product on CUDA takes multiples of {MULTIPLE}"
    if activation.index in program.shifts and largest_shift(program, activation) is None:
        return "power-of-two shifts stay in its activation: torchao's product has one scale for all its channels"
    return ""


def lower_sites(program: Program, kernels: Mapping[str, Kernel], *, pad_rows: bool = False) -> dict[str, str]:
    """Replace the sites that have a kernel, in place; the kernels that were reached, by site.

    The node that gives a site's output says so in `meta["dmq"]`: `site` and `kernel`. pad_rows: give int8 products more
    than `ROWS` rows whatever the batch, for CUDA.
    """
    lowering = _Lowering(program, pad_rows)
    for planned in program.plan.sites:
        if kernels[planned.name].name:
            lowering.site(planned, str(kernels[planned.name].name))
    finish(program.graph_module)
    drop_unread_tensors(program.graph_module)
    return reached_kernels(program.graph_module)


def reached_kernels(graph_module: fx.GraphModule) -> dict[str, str]:
    """What the weights of a graph's linears are, by site: read from the tensors themselves."""
    found = {}
    for node in graph_module.graph.nodes:
        if node.target is functional.linear:
            weight = node.args[1]
            held = weight if weight.op == "get_attr" else weight.args[0]
            found[str(node.meta["dmq"]["site"])] = _kernel_of(get_tensor(graph_module, str(held.target)), weight)
    return found


def _kernel_of(tensor: Tensor, weight: fx.Node) -> str:
    if isinstance(tensor, IntxUnpackedToInt8Tensor):
        return GROUPED
    if not isinstance(tensor, Int8Tensor):
        return f"a weight of type {type(tensor).__name__}"
    if tensor.act_quant_kwargs is None:
        return WEIGHT_ONLY
    by_row, given = isinstance(tensor.act_quant_kwargs.granularity, PerRow), weight.target is of_samples
    if by_row and given:
        return BY_TIMESTEP
    return STATIC if tensor.act_quant_scale is not None and not by_row else "ranges that torchao finds itself"


@dataclass(frozen=True)
class _Rounded:
    """A linear whose input is rounded.

    x: the input before, in float32, with `dims` dimensions; the first is `padded` with `ROWS` more.
    """

    planned: PlannedSite
    grid: IntegerGrid
    x: fx.Node
    dims: int
    padded: bool
    quantizer: fx.Node
    dequantizer: fx.Node
    bias: fx.Node | None


class _Lowering:
    def __init__(self, program: Program, pad_rows: bool) -> None:
        self.program = program
        self.pad_rows = pad_rows
        self.module = program.graph_module
        self.graph = program.graph_module.graph
        self.nodes = nodes_by_name(self.graph)
        self.weights = placed_weights(program)

    def site(self, planned: PlannedSite, kernel: str) -> None:
        node = self.nodes[planned.site.node]
        with self.graph.inserting_before(node):
            call = (self._product if kernel in INTEGER_PRODUCTS else self._weight_only)(node, planned, kernel)
        call.meta = dict(node.meta)
        record(call, kind="kernel", kernel=kernel, site=planned.name)
        node.replace_all_uses_with(call, propagate_meta=False)
        self.graph.erase_node(node)

    def _weight_only(self, node: fx.Node, planned: PlannedSite, kernel: str) -> fx.Node:
        given = call_arguments(node)
        make = weight_only if kernel == WEIGHT_ONLY else weight_only_grouped
        weight = self._held(planned, make(self.weights[planned.site.weight or ""], compute_dtype(node)))
        return self._linear(planned, given["input"], weight, given.get("bias"))

    def _product(self, node: fx.Node, planned: PlannedSite, kernel: str) -> fx.Node:
        """Integers times integers, in float32 around them whatever the model computes in.

        torchao keeps sums in the type of its input before it takes their zero points away and scales them.
        """
        activation = self.program.activation_of(planned, 0)
        assert activation is not None
        given, dtype = call_arguments(node), compute_dtype(node)
        quantizer, dequantizer = _quantizers(given["input"])
        x = quantizer.args[0]
        assert isinstance(x, fx.Node)
        value = x.meta["val"]
        padded = self.pad_rows and _rows_of_one(value) <= ROWS
        if value.dtype != torch.float32:
            x = self._call(aten.to.dtype, x, torch.float32)
        if padded:
            x = self._more_rows(x, value.dim())
        grid = IntegerGrid(activation.spec.bits, activation.spec.symmetric)
        rounded = _Rounded(planned, grid, x, value.dim(), padded, quantizer, dequantizer, given.get("bias"))
        call = (self._static if kernel == STATIC else self._by_timestep)(rounded)
        return call if dtype == torch.float32 else self._call(aten.to.dtype, call, dtype)

    def _static(self, of: _Rounded) -> fx.Node:
        _, scale, zero_point, *_ = of.dequantizer.args
        held = self.weights[of.planned.site.weight or ""]
        channel_scale = None
        if of.quantizer.target is qd.quantize_per_channel.default:
            channel_scale = get_tensor(self.module, str(of.quantizer.all_input_nodes[1].target)).to(held.scale.device)
        found = StaticRange(float(scale), int(zero_point), channel_scale)  # type: ignore[arg-type, call-overload]
        weight = self._held(of.planned, with_static_range(held, of.grid, found, of.dims))
        return self._fewer_rows(of, self._linear(of.planned, of.x, weight, of.bias))

    def _by_timestep(self, of: _Rounded) -> fx.Node:
        """Ranges of the samples' timesteps go into a weight that is put together in every call.

        Where channels are scaled, rounding and dequantizing have different scales. torchao has one: the second follows
        after the product.
        """
        _, scale, zeros, *_ = of.dequantizer.args
        by_channel = of.quantizer.target is not qd.quantize_per_channel.default
        rounding = of.quantizer.args[2] if by_channel else scale
        if of.padded:
            rounding, zeros = self._more_rows(rounding, 2 if by_channel else 1, 1.0), self._more_rows(zeros, 1)
        held = self._held(of.planned, without_range(self.weights[of.planned.site.weight or ""], of.grid))
        weight = self._call(of_samples, held, of.x, rounding, zeros, grid_offset(of.grid))
        if not by_channel:
            return self._fewer_rows(of, self._linear(of.planned, of.x, weight, of.bias))
        call = self._fewer_rows(of, self._linear(of.planned, of.x, weight, None))
        rows = self._call(aten.reshape.default, scale, [-1, *([1] * (of.dims - 1))])
        call = self._call(aten.mul.Tensor, call, rows)
        return call if of.bias is None else self._call(aten.add.Tensor, call, of.bias)

    def _linear(self, planned: PlannedSite, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
        return record(self.graph.call_function(functional.linear, (x, weight, bias)), site=planned.name)

    def _held(self, planned: PlannedSite, tensor: Tensor) -> fx.Node:
        name = f"{planned.name}_torchao"
        set_buffer(self.module, name, tensor)
        return self.graph.get_attr(name)

    def _more_rows(self, node: Any, dims: int, value: float = 0) -> fx.Node:
        return self._call(aten.constant_pad_nd.default, node, [*([0, 0] * (dims - 1)), 0, ROWS], value)

    def _fewer_rows(self, of: _Rounded, node: fx.Node) -> fx.Node:
        return self._call(aten.slice.Tensor, node, 0, 0, -ROWS) if of.padded else node

    def _call(self, target: Any, *arguments: Any) -> fx.Node:
        return self.graph.call_function(target, arguments)


def _rows_of_one(value: Tensor) -> int:
    """Rows that one sample's value, [batch, ..., in], has at least; many where sizes are not known."""
    return math.prod(size if isinstance(size, int) else ROWS + 1 for size in value.shape[1:-1])


def _quantizers(value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The quantize and the dequantize node that a value comes from."""
    dequantizer = value if value.target is not aten.to.dtype else value.args[0]
    assert isinstance(dequantizer, fx.Node) and isinstance(dequantizer.args[0], fx.Node)
    assert dequantizer.meta.get("dmq", {}).get("kind") == "activation", dequantizer
    return dequantizer.args[0], dequantizer
