"""The graph for Model Explorer: by its builders, quantizers visible, modules as layers, sites' facts as overlays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmq_fx.artifact.folder import load_program
from dmq_fx.artifact.opened import open_artifact
from dmq_fx.errors import DmqError
from dmq_fx.inspection import Inspected
from dmq_fx.inspection.graph import build_graph, build_overlays, node_seconds, write_graph
from dmq_fx.program import Program


@pytest.fixture(scope="module")
def program(folded: Path) -> Program:
    return load_program(open_artifact(folded))[0]


@pytest.fixture(scope="module")
def graph(program: Program, found: Inspected) -> Any:
    return build_graph(program, found.rows)


def test_every_node_and_edge_is_there(graph: Any, program: Program) -> None:
    nodes = {node.id: node for node in graph.nodes}
    assert list(nodes) == [node.name for node in program.graph_module.graph.nodes]
    for node in program.graph_module.graph.nodes:
        assert [edge.sourceNodeId for edge in nodes[node.name].incomingEdges] == [n.name for n in node.all_input_nodes]


def test_quantizers_stand_in_the_module_of_their_sites(graph: Any, program: Program) -> None:
    labels = {node.label for node in graph.nodes}
    assert {"quantize_per_channel", "dequantize_per_channel", "quantize_affine", "conv2d"} <= labels
    nodes = {node.id: node for node in graph.nodes}
    planned = program.plan.by_name["up_blocks.0.resnets.0.conv_shortcut.decoder"]
    site = nodes[planned.site.node]
    assert site.namespace == "up_blocks/0/resnets/0/conv_shortcut"
    facts = {item.key: item.value for item in site.attrs}
    assert facts["site"] == planned.name and "decoder half" in facts["folds"] and float(facts["SQNR, dB"]) > 5
    quantizers = [node for node in graph.nodes if node.label == "quantize_affine"]
    assert all(node.namespace for node in quantizers)
    assert any(node.namespace.endswith("conv_shortcut") for node in quantizers)
    shared = [
        n
        for n in graph.nodes
        if any(a.key == "dmq: sites" and "to_q" in a.value and "to_v" in a.value for a in n.attrs)
    ]
    assert shared and all(node.namespace.split("/")[-2] == "attentions" for node in shared)


def test_overlays(program: Program, found: Inspected) -> None:
    seconds = node_seconds(program, rounds=1)
    overlays = build_overlays(program, found.rows, seconds)
    assert list(overlays)[-1] == "SQNR (dB)"
    assert set(overlays) == {"SQNR (dB)", "weight bits", "activation bits", "size (bytes)", "role", "time share (%)"}
    node = program.plan.by_name["mid_block.resnets.0.conv1"].site.node
    row = found.row("mid_block.resnets.0.conv1")
    assert overlays["SQNR (dB)"].results[node].value == row["sqnr_db"]
    assert overlays["size (bytes)"].results[node].value == row["bytes"]
    assert overlays["weight bits"].results[node].value == 4 and overlays["role"].results[node].value == "block_in"
    assert sum(one.value for one in overlays["time share (%)"].results.values()) == pytest.approx(100, abs=0.5)
    assert "time share (%)" not in build_overlays(program, found.rows)


def test_timing_leaves_the_program_as_it_was(program: Program) -> None:
    before = program.graph_module.code
    node_seconds(program, rounds=1)
    assert program.graph_module.code == before


def test_written_files(graph: Any, program: Program, found: Inspected, tmp_path: Path) -> None:
    written = write_graph(tmp_path / "graph.json", graph, build_overlays(program, found.rows), "a/b<c>\x1b")
    assert [path.name for path in written] == [
        "graph.json",
        "graph.role.json",
        "graph.size-bytes.json",
        "graph.activation-bits.json",
        "graph.weight-bits.json",
        "graph.sqnr-db.json",
    ]
    content = json.loads(written[0].read_text())
    assert content["label"] == "a/b<c>\\x1b" and len(content["graphs"][0]["nodes"]) == len(graph.nodes)
    data = json.loads(written[-1].read_text())
    assert set(data) == {content["graphs"][0]["id"]} and data["graph"]["results"]
    overlays = build_overlays(program, found.rows)
    for path in (tmp_path / "no" / "graph.json", "/", ".", "a\0b", tmp_path):
        with pytest.raises(DmqError, match="cannot write the graph"):
            write_graph(path, graph, overlays, "a")
