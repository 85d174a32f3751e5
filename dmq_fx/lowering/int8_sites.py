"""Sites of a quantized graph become calls of int8 kernels, with the integers of fake quantization in front of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dmq_fx.lowering.attention_sites import lower_attention, written_out_attention
from dmq_fx.lowering.int8_weights import centred, scales_by_output, sums_by_output
from dmq_fx.lowering.integers import before, bounds_of, integers_before, offset_of
from dmq_fx.lowering.kernels import Kernel, shifts_at_run_time
from dmq_fx.lowering.one_timestep import Rows
from dmq_fx.lowering.onednn import onednn, shape_to_pack_for
from dmq_fx.planning import PlannedSite
from dmq_fx.program.convert_activations import dequantize_factor_name, quantize_factor_name
from dmq_fx.program.convert_weights import placed_weights
from dmq_fx.program.graph_tools import (
    call_arguments,
    drop_unread_tensors,
    finish,
    get_tensor,
    let_views_copy,
    nodes_by_name,
    record,
    set_buffer,
)
from dmq_fx.program.program import Activation, Program
from dmq_fx.program.scaling import ChannelFactors, channel_axis, channel_factors

aten = torch.ops.aten
dmq = torch.ops.dmq
SHIFTED = "shifted weight"
"""Said of weights that are computed in every call: too large to keep for every timestep."""


def lower_sites(program: Program, kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """Replace the sites that have a kernel, in place; the kernels that were reached, by site.

    The graph is for samples of one timestep from then on (`Rows`). A site's node says so in `meta["dmq"]`: `site` and
    `kernel`, and in `with` the sites that it computes beside that one.
    """
    lowering = Lowering(program)
    for planned in program.plan.sites:
        if kernels[planned.name].name:
            lowering.site(planned, str(kernels[planned.name].name))
    let_views_copy(program.graph_module)
    finish(program.graph_module)
    drop_unread_tensors(program.graph_module)
    return reached_kernels(program.graph_module.graph)


def reached_kernels(graph: fx.Graph) -> dict[str, str]:
    """The kernels that a graph calls, by site."""
    facts = [node.meta.get("dmq", {}) for node in graph.nodes]
    calls = [fact for fact in facts if "kernel" in fact]
    return {str(site): str(fact["kernel"]) for fact in calls for site in (fact["site"], *fact.get("with", ()))}


class Lowering:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.module = program.graph_module
        self.graph = program.graph_module.graph
        self.nodes = nodes_by_name(self.graph)
        self.rows = Rows(program)
        self.weights = placed_weights(program)
        self.planned = {planned.site.node: planned for planned in program.plan.sites}
        self.attention = written_out_attention(program.traced.graph)
        self.integers: dict[tuple[int, tuple[int, ...]], fx.Node] = {}
        self.scales: dict[int, Any] = {}
        self.zero_points: dict[int, Any] = {}
        self.quantizers = {
            node.meta["dmq"]["activation"]: node
            for node in reversed(self.graph.nodes)
            if node.meta.get("dmq", {}).get("kind") == "activation"
        }

    def site(self, planned: PlannedSite, kernel: str) -> None:
        if planned.site.weight is None:
            pair = self.attention.get(planned.site.node)
            if pair is not None and pair.values.name == planned.site.node:
                lower_attention(self, pair)
            return
        activation = self.program.activation_of(planned, 0)
        assert activation is not None
        node = self.nodes[planned.site.node]
        with self.graph.inserting_before(node):
            call = (self._linear if "linear" in kernel else self._conv)(node, planned, activation)
        call.meta = dict(node.meta)
        record(call, kind="kernel", kernel=kernel, site=planned.name)
        node.replace_all_uses_with(call, propagate_meta=False)
        self.graph.erase_node(node)

    def _conv(self, node: fx.Node, planned: PlannedSite, activation: Activation) -> fx.Node:
        given = call_arguments(node)
        dim = len(planned.site.shape) - 2
        stride, padding, dilation = (
            _per_axis(given.get(name, usual), dim) for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        groups = given.get("groups", 1)
        if {*planned.site.shape[2:], *stride, groups} == {1} and not any(padding):
            return self._pointwise(planned, activation, given.get("bias"), dim)
        padded = tuple(padding) if any(padding) and self.zero_points_of(activation).any() else ()
        if padded:
            padding = [0] * dim
        x = self.integers_of(activation, padded)
        where = (stride, padding, dilation, groups)
        weight, scale, zeros = self._weight(planned, activation)
        channels = planned.site.shape[1] * groups
        if channels == 1:
            channels = 2
            x, weight = (self._second_channel(part, dim) for part in (x, weight))
        zero = self.rows.zero if activation.spec.per_timestep else 0
        head = (x, self.scale_of(activation), zero)
        tail = (scale, zeros, self._corrected_bias(planned, activation, given.get("bias")), *where)
        if shifts_at_run_time(self.program, activation):
            return self.graph.call_function(dmq.qconv_shifted.default, (*head, weight, *tail, torch.float32))
        shape = shape_to_pack_for(node, channels, padded or (0,) * dim)
        packed = self.graph.call_function(onednn.qconv_prepack.default, (weight, scale, 1.0, 0, *where, shape))
        kernel = onednn.qconv_pointwise.tensor if activation.spec.per_timestep else onednn.qconv_pointwise.default
        return self.graph.call_function(kernel, (*head, packed, *tail, 1.0, 0, torch.float32, "none", [], ""))

    def _second_channel(self, node: fx.Node, dim: int) -> fx.Node:
        """An image or weight of one channel with another one of zeros.

        An image of one channel lies in memory as if channels were last and as if they were first. Inductor expects the
        results of such a convolution with channels first, and the kernel gives them with channels last.
        """
        return self.graph.call_function(aten.constant_pad_nd.default, (node, [0] * (2 * dim) + [0, 1]))

    def _pointwise(self, planned: PlannedSite, activation: Activation, bias: fx.Node | None, dim: int) -> fx.Node:
        """A convolution of single pixels is a product of matrices; where channels are last, without a copy."""
        last, first = [0, *range(2, 2 + dim), 1], [0, 1 + dim, *range(1, 1 + dim)]
        x = self.graph.call_function(aten.permute.default, (self.integers_of(activation), last))
        y = self._product(x, planned, activation, bias)
        return self.graph.call_function(aten.permute.default, (y, first))

    def _linear(self, node: fx.Node, planned: PlannedSite, activation: Activation) -> fx.Node:
        return self._product(self.integers_of(activation), planned, activation, call_arguments(node).get("bias"))

    def _product(self, x: fx.Node, planned: PlannedSite, activation: Activation, bias: fx.Node | None) -> fx.Node:
        """x [..., in] times the weights, with the activation's zero point (packed weights hold their sums)."""
        x = self.graph.call_function(aten.contiguous.default, (x,))
        weight, scale, zeros = self._weight(planned, activation)
        weight = (
            self.graph.call_function(aten.flatten.using_ints, (weight, 1)) if len(planned.site.shape) > 2 else weight
        )
        by_slot = activation.spec.per_timestep
        head, tail = (x, self.scale_of(activation), self.zero_point_of(activation)), (scale, zeros, bias)
        if shifts_at_run_time(self.program, activation):
            return self.graph.call_function(dmq.qlinear_shifted.default, (*head, weight, *tail, torch.float32))
        packed = self.graph.call_function(onednn.qlinear_prepack.default, (weight, None))
        kernel = onednn.qlinear_pointwise.tensor if by_slot else onednn.qlinear_pointwise.default
        return self.graph.call_function(kernel, (*head, packed, *tail, 1.0, 0, torch.float32, "none", [], ""))

    def _weight(self, planned: PlannedSite, activation: Activation) -> tuple[fx.Node, fx.Node, fx.Node]:
        """A weight's integers without zero point (int8), its scales [out], and the zeros that kernels ask for."""
        name = planned.site.weight or ""
        held = self.weights[name]
        out = held.integers.shape[0]
        integers = self.tensor(f"{name}_int8", centred(held))
        if shifts_at_run_time(self.program, activation):
            integers = self._shifted(integers, activation, held.integers.dim())
        return (
            integers,
            self.tensor(f"{name}_int8_scale", scales_by_output(held)),
            self.tensor(f"{name}_int8_zero_point", torch.zeros(out, dtype=torch.int64)),
        )

    def _corrected_bias(self, planned: PlannedSite, activation: Activation, bias: fx.Node | None) -> fx.Node | None:
        """The bias less what the activation's zero point adds to every sum, s z (weights summed by output): [out].

        Convolutions get integers with their zero point in them, and no zero point: with one they would pack their
        weights again in every call.
        """
        if not self.zero_points_of(activation).any():
            return bias
        held = self.weights[planned.site.weight or ""]
        name = f"{planned.name}_int8_sums"
        if not activation.spec.per_timestep:
            scale, zero_point = self.scale_of(activation), self.zero_point_of(activation)
            sums = -scale * zero_point * sums_by_output(held)
            if bias is not None:
                sums = sums + get_tensor(self.module, str(bias.target)).double()
            return self.tensor(name, sums.float())
        if shifts_at_run_time(self.program, activation):
            left = 2.0 ** (self._largest(activation) - self.program.shifts[activation.index].double())
            set_buffer(self.module, name, torch.stack([sums_by_output(held, row) for row in left]).float())
            sums = self.rows.of(name)
            sums = self.after(sums, aten.select.int, sums, 0, 0)
        else:
            set_buffer(self.module, name, sums_by_output(held).float())
            with self.graph.inserting_after(self.rows.slot):
                sums = self.graph.get_attr(name)
        scale = self.scale_of(activation)
        zero_point = self.zero_point_of(activation)
        product = self.after(max(scale, zero_point), aten.mul.Tensor, scale, zero_point)
        product = self.after(max(product, sums), aten.mul.Tensor, product, sums)
        negative = self.after(product, aten.neg.default, product)
        if bias is None:
            return negative
        return self.after(negative, aten.add.Tensor, negative, self.early(str(bias.target)))

    def early(self, name: str, value: Tensor | None = None) -> fx.Node:
        """A tensor of the graph, perhaps a new one, where rows of tables are made."""
        if value is not None:
            set_buffer(self.module, name, value)
        with self.graph.inserting_before(self.rows.slot):
            return self.graph.get_attr(name)

    def tensor(self, name: str, value: Tensor) -> fx.Node:
        set_buffer(self.module, name, value)
        return self.graph.get_attr(name)

    def _shifted(self, integers: fx.Node, activation: Activation, dim: int) -> fx.Node:
        """Weights of this timestep: input channel c shifted left by K - k_c, K the largest shift of all timesteps."""
        row = self.rows.of(dequantize_factor_name(activation))  # 2^-k
        left = self.after(row, aten.mul.Tensor, row, 2.0 ** self._largest(activation))
        shaped = self.graph.call_function(aten.reshape.default, (left, [1, -1, *([1] * (dim - 2))]))
        node = self.graph.call_function(aten.to.dtype, (integers, torch.float32))
        node = record(self.graph.call_function(aten.mul.Tensor, (node, shaped)), kind=SHIFTED)
        return self.graph.call_function(aten.to.dtype, (node, torch.int8))

    def _largest(self, activation: Activation) -> int:
        return int(self.program.shifts[activation.index].max())

    def integers_of(self, activation: Activation, padding: tuple[int, ...] = ()) -> fx.Node:
        """The activation as uint8, padded with zeros: those of a signed grid begin at 0."""
        key = (activation.index, padding)
        if key not in self.integers:
            self.integers[key] = self._quantize(activation, padding)
        return self.integers[key]

    def _quantize(self, activation: Activation, padding: tuple[int, ...]) -> fx.Node:
        quantizer = self.quantizers[activation.index]
        source, (low, high) = quantizer.args[0], bounds_of(activation)
        assert isinstance(source, fx.Node)
        reciprocal, zero_point = self._reciprocal(activation, source.meta["val"].dim())
        source = before(quantizer, aten.to.dtype, source, torch.float32)  # others may make it another type
        if padding:
            amounts = [amount for amount in reversed(padding) for _ in range(2)]
            source = before(quantizer, aten.constant_pad_nd.default, source, amounts)
        return integers_before(quantizer, source, reciprocal, zero_point, (low, high), torch.uint8)

    def _reciprocal(self, activation: Activation, dim: int) -> tuple[Any, Any]:
        """What values are multiplied with, and the zero point that is added to what was rounded."""
        program, quantizer = self.program, self.quantizers[activation.index]
        factors = channel_factors(program, activation)
        if not activation.spec.per_timestep:
            scale, zero_point = (part[0] for part in program.qparams[activation.index])
            zero = int(zero_point) + offset_of(activation)
            if factors is None:
                return 1.0 / float(scale), zero
            by_channel = 1.0 / (scale.cpu() * factors.quantize[0])
            name = f"dmq.int8.{activation.index}.reciprocal"
            set_buffer(self.module, name, self._along_channels(activation, by_channel, dim))
            with self.graph.inserting_before(quantizer):
                return self.graph.get_attr(name), zero
        scale = self.rows.scale(activation)
        if factors is not None:
            scale = self._by_channel(activation, factors, scale, dim)
        return self.after(scale, aten.reciprocal.default, scale), self.zero_point_of(activation)

    def _by_channel(self, activation: Activation, factors: ChannelFactors, scale: fx.Node, dim: int) -> fx.Node:
        """Scale of every channel in this slot, shaped to stand beside the activation."""
        name = quantize_factor_name(activation)
        if factors.quantize.shape[0] > 1:
            row = self.rows.of(name)
        else:
            with self.graph.inserting_after(scale):
                row = self.graph.get_attr(name)
        later = row if scale < row else scale
        product = self.after(later, aten.mul.Tensor, scale, row)
        axis = channel_axis(self.program, activation)
        assert axis is not None
        return self.after(product, aten.reshape.default, product, [-1, *([1] * (dim - 1 - axis))])

    def _along_channels(self, activation: Activation, values: Tensor, dim: int) -> Tensor:
        axis = channel_axis(self.program, activation)
        assert axis is not None
        return values.reshape(-1, *([1] * (dim - 1 - axis)))

    def scale_of(self, activation: Activation) -> Any:
        """Scale of the integers that a kernel reads: a number, or a node where the slot decides."""
        if activation.index not in self.scales:
            self.scales[activation.index] = self._make_scale(activation)
        return self.scales[activation.index]

    def _make_scale(self, activation: Activation) -> Any:
        factor = self._factor(activation)
        if not activation.spec.per_timestep:
            return float(self.program.qparams[activation.index].scale[0]) * factor
        scale = self.rows.scale(activation)
        return scale if factor == 1.0 else self.after(scale, aten.mul.Tensor, scale, factor)

    def _factor(self, activation: Activation) -> float:
        factors = channel_factors(self.program, activation)
        if factors is None:
            return 1.0
        if isinstance(factors.dequantize, Tensor):  # by channel, and so in the weights of the call
            return 2.0 ** -self._largest(activation)
        return factors.dequantize

    def zero_points_of(self, activation: Activation) -> Tensor:
        """Zero points of the unsigned integers, [slots or 1]."""
        return self.program.qparams[activation.index].zero_point.cpu() + offset_of(activation)

    def zero_point_of(self, activation: Activation) -> Any:
        """Zero point of the unsigned integers: a number, or a node where the slot decides."""
        if activation.index not in self.zero_points:
            self.zero_points[activation.index] = self._make_zero_point(activation)
        return self.zero_points[activation.index]

    def _make_zero_point(self, activation: Activation) -> Any:
        if not activation.spec.per_timestep:
            return int(self.zero_points_of(activation)[0])
        zero = self.rows.zero_point(activation)
        return self.after(zero, aten.add.Tensor, zero, offset_of(activation)) if offset_of(activation) else zero

    def after(self, place: fx.Node, target: Any, *arguments: Any) -> fx.Node:
        with self.graph.inserting_after(place):
            return record(self.graph.call_function(target, arguments), kind="table")


def _per_axis(value: Any, dim: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dim if len(values) == 1 else values
