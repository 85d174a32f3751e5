"""What a pass reports, and the two facts of it that the pipeline adds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dmq_fx import pipeline
from dmq_fx.pass_api import PassResult
from dmq_fx.program import PassContext
from dmq_fx.recipe.language import PassSpec


def test_a_report_cannot_hide_the_name_of_its_pass_or_the_number_of_its_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    class Toy:
        requires: frozenset[str] = frozenset()
        ensures: frozenset[str] = frozenset()

        @staticmethod
        def run(program: Any, options: Any, context: Any) -> PassResult:
            return PassResult(("a", "b"), {"sites": {"a": 1}, "pass": "other", "kept": ["b"]})

    monkeypatch.setattr(pipeline, "PASSES", SimpleNamespace(get=lambda name, where=None: Toy))
    monkeypatch.setattr(pipeline, "advance", lambda *_: None)
    program: Any = SimpleNamespace(states=set(), graph_module=SimpleNamespace(graph=SimpleNamespace(lint=lambda: None)))
    context = PassContext(None, 0, "cpu", lambda *_: None)
    reports = pipeline.run_passes(program, [PassSpec(name="toy", options=None)], context)
    assert reports == [{"pass": "toy", "sites": 2, "kept": ["b"]}]
