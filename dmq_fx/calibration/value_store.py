"""Values of a graph over the same rows of the calibration set, kept within a memory limit.

Reconstruction walks the graph from its inputs to its output and asks for the values before and behind every unit. Each
is computed from the nearest ones that are still kept, so that a walk costs about one forward; what no longer leads
anywhere is dropped, and where memory does not last, what is needed last (it is computed again from further up).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dmq_fx.calibration.minibatches import Minibatches, Pick
from dmq_fx.errors import CalibrationError, InternalError
from dmq_fx.program.pieces import BatchAxis, NotClosedError, Piece, extract, is_size
from dmq_fx.tracing import TracedModel


@dataclass(frozen=True)
class Rows:
    """One value for all samples: [samples * multiple, ...]; multiple is 0 for one that does not follow the batch."""

    values: Tensor
    multiple: int

    def take(self, picks: Tensor) -> Tensor:
        """The value for the samples `picks`, [picks * multiple, ...]."""
        if not self.multiple:
            return self.values
        if self.multiple == 1:
            return self.values[picks]
        return self.values.unflatten(0, (-1, self.multiple))[picks].flatten(0, 1)


class ValueStore:
    """Values of a traced graph for the rows `picks`, computed `batch` rows at a time.

    weight: gives the tensor to use for a parameter that is named in `weights`; others are the graph's own.
    limit: bytes of the values kept, at the traced size. A value that is asked for must be computed by weights that no
    longer change, and `get` must be asked in the graph's order.
    """

    def __init__(
        self,
        traced: TracedModel,
        minibatches: Minibatches,
        picks: Sequence[Pick],
        *,
        batch: int,
        limit: int,
        weights: Collection[str] = (),
        weight: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._traced = traced
        self._minibatches = minibatches
        self._picks = picks
        self._batch = batch
        self._limit = limit
        self._weights = frozenset(weights)
        self._weight = weight
        self._nodes = {node.name: node for node in traced.graph.nodes}
        self._position = {node: index for index, node in enumerate(traced.graph.nodes)}
        self._axis = BatchAxis(traced)
        self._kept: dict[str, Rows] = {}
        self._cut = -1

    @property
    def bytes(self) -> int:
        """Of the values that are kept."""
        return sum(rows.values.nbytes for rows in self._kept.values())

    def get(self, names: Sequence[str]) -> list[Rows]:
        """The values called `names`, without gradients. Raises CalibrationError for one that cannot be kept by rows."""
        missing = [name for name in dict.fromkeys(names) if name not in self._kept]
        if missing:
            self._make_room(missing, names)
            self._compute(missing)
        self._cut = max(self._cut, *(self._position[self._nodes[name]] for name in names), -1)
        for name in [n for n in self._kept if n not in names and self._next_use(n) is None]:
            del self._kept[name]
        return [self._kept[name] for name in names]

    def _make_room(self, missing: Sequence[str], wanted: Sequence[str]) -> None:
        rows = len(self._picks)
        sizes = {name: self._axis.bytes(self._nodes[name]) for name in missing}
        needed = sum(size * (rows if self._multiple(name) else 1) for name, size in sizes.items())
        others = [name for name in self._kept if name not in wanted]
        order = sorted(others, key=lambda name: (-(self._next_use(name) or 0), name))
        while order and self.bytes + needed > self._limit:
            del self._kept[order.pop(0)]

    def _next_use(self, name: str) -> int | None:
        """Position behind the cut of the first node that depends on a value by ones that are not kept."""
        found: list[int] = []
        seen: set[fx.Node] = set()
        stack = list(self._nodes[name].users)
        while stack:
            node = stack.pop()
            if node in seen or is_size(node) or node.name in self._kept:
                continue
            seen.add(node)
            if self._position[node] > self._cut:
                found.append(self._position[node])
            else:
                stack.extend(node.users)
        return min(found, default=None)

    def _compute(self, names: Sequence[str]) -> None:
        piece = self._piece(names)
        weights = [self._weight(name) for name in piece.weights] if self._weight is not None else []
        found: dict[str, Rows] = {}
        with torch.no_grad():
            for start in range(0, len(self._picks), self._batch):
                picks = range(start, min(start + self._batch, len(self._picks)))
                values = piece.module(*self._inputs(piece, picks), *weights)
                for name, value in zip(piece.outputs, values, strict=True):
                    self._put(found, name, value, picks)
        self._kept.update(found)

    def _inputs(self, piece: Piece, picks: range) -> list[Tensor]:
        given: dict[str, Tensor] = {}
        if any(name not in self._kept for name in piece.inputs):
            arguments = self._minibatches.take([self._picks[index] for index in picks])
            given = {entry.name: value for entry, value in zip(self._traced.inputs, arguments, strict=True)}
        index = torch.arange(picks.start, picks.stop)
        return [self._kept[n].take(index) if n in self._kept else given[n] for n in piece.inputs]

    def _put(self, found: dict[str, Rows], name: str, value: Tensor, picks: range) -> None:
        """Copy what one forward gave into the value of all rows."""
        multiple = self._multiple(name)
        if not multiple:
            first = found.setdefault(name, Rows(value.clone(), 0))
            if not torch.equal(first.values, value):
                raise CalibrationError(
                    f"the value {name!r} does not follow the batch, but is not the same for all calibration inputs",
                    where=self._traced.class_name,
                    hint="inputs of the denoiser without a batch dimension must be the same at every call",
                )
            return
        if value.shape[0] != len(picks) * multiple:
            raise InternalError(
                f"{name!r} has {value.shape[0]} rows for {len(picks)} samples, expected {multiple} each"
            )
        if name not in found:
            found[name] = Rows(value.new_empty(len(self._picks) * multiple, *value.shape[1:]), multiple)
        found[name].values[picks.start * multiple : picks.stop * multiple] = value

    def _multiple(self, name: str) -> int:
        multiple = self._axis.rows(self._nodes[name])
        if multiple is None:
            raise InternalError(f"the batch is not the first axis of {name!r}")
        return multiple

    def _piece(self, names: Sequence[str]) -> Piece:
        """What computes `names` from the values that are kept and the graph's inputs."""
        outputs = [self._nodes[name] for name in names]
        try:
            return extract(self._traced, self._upstream(outputs, sizes=False), outputs, self._weights)
        except NotClosedError:  # a size that only the graph's inputs have
            return extract(self._traced, self._upstream(outputs, sizes=True), outputs, self._weights)

    def _upstream(self, outputs: Sequence[fx.Node], *, sizes: bool) -> set[fx.Node]:
        found: set[fx.Node] = set()
        stack = list(outputs)
        while stack:
            node = stack.pop()
            known = node.op != "call_function" or node.name in self._kept or (is_size(node) and not sizes)
            if not known and node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found
