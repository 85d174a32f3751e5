"""Weighted ops and products of activations: recognising them, their operands and their cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import fx

from dmq_fx.roles.values import aten, is_rearrangement, packet, shape

_CONVOLUTIONS = {aten.conv1d: "conv1d", aten.conv2d: "conv2d", aten.conv3d: "conv3d"}
_BY_RANK = {3: "conv1d", 4: "conv2d", 5: "conv3d"}
_PRODUCTS = {aten.matmul: (0, 1), aten.bmm: (0, 1), aten.mm: (0, 1), aten.baddbmm: (1, 2)}


@dataclass(frozen=True)
class Operation:
    """A node that can be a site.

    kind: one of `dmq_fx.sites.OPS`.
    operands: positions of the activations in the node's arguments.
    weight, bias: the `get_attr` nodes read, None for a product of activations, or for a bias that is computed.
    """

    node: fx.Node
    kind: str
    operands: tuple[int, ...]
    weight: fx.Node | None = None
    bias: fx.Node | None = None

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The activations it reads."""
        return tuple(self.node.args[position] for position in self.operands)  # type: ignore[misc]

    @property
    def weighted(self) -> bool:
        return self.weight is not None


def operation(node: fx.Node) -> Operation | None:
    """The operation that `node` is, or None."""
    if node.op != "call_function":
        return None
    op = packet(node)
    if op in _CONVOLUTIONS:
        return _weighted(node, _CONVOLUTIONS[op], 0, 1, 2)
    if op is aten.convolution:
        transposed = node.args[6]
        return None if transposed else _weighted(node, _BY_RANK.get(len(shape(node)), ""), 0, 1, 2)
    if op is aten.linear:
        return _weighted(node, "linear", 0, 1, 2)
    if op is aten.addmm:
        return _weighted(node, "linear", 1, 2, 0)
    if op is aten.scaled_dot_product_attention:
        return Operation(node, "attention", (0, 1, 2))
    if op in _PRODUCTS:
        return _product(node, _PRODUCTS[op])
    return None


def kernel_stride(operation: Operation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel size and stride of a convolution; empty for a linear."""
    if operation.weight is None or not operation.kind.startswith("conv"):
        return (), ()
    kernel = shape(operation.weight)[2:]
    return kernel, _repeat(_argument(operation.node, 3, "stride", 1), len(kernel))


def is_pointwise(operation: Operation) -> bool:
    """A linear, or a convolution that mixes channels at one position: kernel of one, one group."""
    kernel, _ = kernel_stride(operation)
    return operation.kind == "linear" or (bool(kernel) and set(kernel) == {1} and not is_depthwise(operation))


def is_depthwise(operation: Operation) -> bool:
    """A convolution of each channel by itself."""
    return operation.weight is not None and operation.kind.startswith("conv") and shape(operation.weight)[1] == 1


def pads(operation: Operation) -> bool:
    """True for a convolution that pads its input with zeros."""
    if not operation.kind.startswith("conv"):
        return False
    padding = _argument(operation.node, 4, "padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in kernel_stride(operation)[0])
    return any(size > 0 for size in _repeat(padding, 1))


def macs(operation: Operation, batch: int) -> int:
    """Multiply-accumulates for one sample at the traced size; bias, softmax and scaling are not counted."""
    out = prod(shape(operation.node))
    if operation.weight is not None:
        weight = shape(operation.weight)
        per_output = weight[_input_dim(operation)] * prod(weight[2:])
        return out * per_output // batch
    if operation.kind == "attention":
        query, key, value = (shape(node) for node in operation.inputs)
        return prod(query[:-1]) * key[-2] * (query[-1] + value[-1]) // batch
    return out * shape(operation.inputs[0])[-1] // batch


def _input_dim(operation: Operation) -> int:
    """Position of the input channels in the stored weight: addmm may read it untransposed."""
    if packet(operation.node) is aten.addmm and operation.node.args[2] is operation.weight:
        return 0
    return 1


def _weighted(node: fx.Node, kind: str, data: int, weight: int, bias: int) -> Operation | None:
    """The operation if its weight is a parameter that is read as it is (or transposed)."""
    parameter = _parameter(node.args[weight])
    if parameter is None or not kind or not isinstance(node.args[data], fx.Node):
        return None
    given = _argument(node, bias, "bias", None)
    return Operation(node, kind, (data,), parameter, _parameter(given) if isinstance(given, fx.Node) else None)


def _product(node: fx.Node, operands: tuple[int, int]) -> Operation | None:
    """A matmul of two activations; a plain matrix of the model on the right makes it a linear."""
    left, right = (node.args[position] for position in operands)
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    if _parameter(left) is not None or _parameter(right) is not None:
        return None
    return Operation(node, "matmul", operands)


def _parameter(node: object) -> fx.Node | None:
    """The `get_attr` node behind a value that is a parameter, perhaps transposed."""
    while isinstance(node, fx.Node) and node.op == "call_function" and is_rearrangement(node):
        node = node.args[0]
    return node if isinstance(node, fx.Node) and node.op == "get_attr" else None


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _repeat(value: object, length: int) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(value) if len(value) != 1 else tuple(value) * length
    return (value,) * length  # type: ignore[return-value]
