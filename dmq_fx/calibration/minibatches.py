"""Minibatches for learned passes: rows of a calibration set at random, so that one batch mixes timesteps.

Only the rows that are asked for are read, whatever the size of the set: nothing of a file is kept but how many rows
its steps have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import groupby
from math import gcd
from typing import Any

import torch
from torch import Tensor

from dmq_fx.calibration.store import CalibrationSet
from dmq_fx.errors import CalibrationError, InternalError
from dmq_fx.tracing import TracedModel

Pick = tuple[int, int, int]
"""A row of a calibration set: (batch file, step, row)."""


class Minibatches:
    """Arguments of denoiser calls made of rows of a calibration set.

    batch: rows of a minibatch. seed: of the draws. device: where the arguments are put.
    A row is a row of one denoiser call while sampling: with classifier-free guidance an image has two. Inputs that do
    not follow the batch (positions) are taken from the first row's call, and should be the same in every one. If the
    timestep is among them, all rows of a minibatch are of one call.
    Raises CalibrationError if the set lacks an input of the graph, or a file of it cannot be read.
    """

    def __init__(
        self, traced: TracedModel, inputs: CalibrationSet, *, batch: int, seed: int, device: torch.device
    ) -> None:
        if batch < 1:
            raise InternalError(f"a minibatch has at least one row, got {batch}")
        self._inputs = inputs
        self._batch = batch
        self._seed = seed
        self._device = device
        self._entries = traced.inputs
        self._mixed = all(entry.batched for entry in traced.inputs if entry.name == traced.timestep)
        batched = next((entry.path for entry in traced.inputs if entry.batched), None)
        if batched is None:
            raise InternalError("no input of the graph follows the batch", where=traced.class_name)
        self._counts = torch.stack([self._count(file, batched) for file in range(len(inputs))])  # [files, steps]
        self._ends = self._counts.flatten().cumsum(0)

    @property
    def rows(self) -> int:
        """How many (file, step, row) there are."""
        return int(self._ends[-1])

    def draw(self, iteration: int) -> tuple[Tensor, ...]:
        """The arguments of minibatch `iteration`, in the order of `traced.input_paths`; rows may come twice.

        The rows depend on seed and iteration alone, not on what was drawn before.
        """
        digest = hashlib.sha256(f"minibatch {self._seed} {iteration}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self.take(self._picks(generator))

    def take(self, picks: Sequence[Pick]) -> tuple[Tensor, ...]:
        """The arguments of one call with the rows `picks`, in their order; each file among them is opened once."""
        self._check(picks)
        parts: list[list[Tensor]] = [[] for _ in picks]  # of every pick, its rows of all inputs
        by_file = sorted(range(len(picks)), key=lambda place: picks[place])
        for file, places in groupby(by_file, key=lambda place: picks[place][0]):
            with self._inputs.opened(file) as (opened, table):
                for place in places:
                    _, step, row = picks[place]
                    for entry in self._entries:
                        stored = self._slice(opened, table[step], entry.path)
                        if entry.batched:
                            parts[place].append(stored[row : row + 1].clone())
                        else:
                            parts[place].append(stored[...].clone() if place == 0 else torch.empty(0))
        joined = zip(self._entries, zip(*parts, strict=True), strict=True)
        return tuple((torch.cat(rows) if entry.batched else rows[0]).to(self._device) for entry, rows in joined)

    def spread(self, count: int) -> list[Pick]:
        """`count` different picks, as evenly over samples and over steps as can be; fewer if there are fewer.

        A sample is a row that every step of its file has. Picks are ordered by file and row, so that consecutive ones
        are read from few files. Samples have as many picks as one another, or one more; so have steps.
        """
        samples = [(file, row) for file, counts in enumerate(self._counts) for row in range(int(counts.min()))]
        steps = self._counts.shape[1]
        count = min(count, len(samples) * steps)
        # Consecutive picks go through the steps, in leaps: a sample's picks are consecutive and so of different steps.
        leap = next((d for d in range(max(1, round(steps * 0.618)), steps) if gcd(d, steps) == 1), 1)
        order = [place * leap % steps for place in range(steps)]
        if count < steps:
            order = [place * steps // count for place in range(count)]
        places = [place * len(samples) // count for place in range(count)]
        return [(samples[s][0], order[i % len(order)], samples[s][1]) for i, s in enumerate(places)]

    def _count(self, file: int, path: str) -> Tensor:
        """Rows of every step of a file, [steps]: the first dimension of an input that follows the batch."""
        with self._inputs.opened(file) as (opened, table):
            counts = [self._slice(opened, names, path).get_shape()[0] for names in table]
        if len(counts) != self._inputs.steps or not all(counts):
            raise CalibrationError(
                f"batch {file} has {len(counts)} steps with {counts} rows, expected {self._inputs.steps} with some",
                where=str(self._inputs.path),
                hint="delete the folder to capture it again",
            )
        return torch.tensor(counts)

    def _slice(self, opened: Any, names: dict[str, str], path: str) -> Any:
        if path not in names:
            raise CalibrationError(
                f"the calibration inputs have no {path!r}",
                where=str(self._inputs.path),
                hint=f"they have {', '.join(sorted(names))}: capture them with the inputs the model was traced with",
            )
        return opened.get_slice(names[path])

    def _picks(self, generator: torch.Generator) -> list[Pick]:
        if self._mixed:
            drawn = torch.randint(self.rows, (self._batch,), generator=generator)
            calls = torch.searchsorted(self._ends, drawn, right=True)
            rows = drawn - (self._ends - self._counts.flatten())[calls]
        else:
            drawn = torch.randint(self.rows, (1,), generator=generator)
            calls = torch.searchsorted(self._ends, drawn, right=True).expand(self._batch)
            rows = torch.randint(int(self._counts.flatten()[calls[0]]), (self._batch,), generator=generator)
        steps = self._counts.shape[1]
        return [(call // steps, call % steps, row) for call, row in zip(calls.tolist(), rows.tolist(), strict=True)]

    def _check(self, picks: Sequence[Pick]) -> None:
        if not picks:
            raise InternalError("a minibatch has at least one row")
        files, steps = self._counts.shape
        for file, step, row in picks:
            inside = 0 <= file < files and 0 <= step < steps and 0 <= row < int(self._counts[file, step])
            if not inside:
                raise InternalError(f"there is no row {(file, step, row)} in the calibration set")
        if not self._mixed and len({pick[:2] for pick in picks}) > 1:
            raise InternalError("the timestep does not follow the batch: all rows must be of one file and step")
