"""One hash for a graph, equal for the same model on any device."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import fx


def graph_fingerprint(graph_module: fx.GraphModule) -> str:
    """SHA-256 over every node's op, name, target and arguments; devices are left out."""
    digest = hashlib.sha256()
    for node in graph_module.graph.nodes:
        kwargs = sorted((key, _text(value)) for key, value in node.kwargs.items() if key != "device")
        digest.update(f"{node.op}|{node.name}|{node.target}|{_text(node.args)}|{kwargs}\n".encode())
    return digest.hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_text(item)}' for key, item in sorted(value.items()))}}}"
    return repr(value)
