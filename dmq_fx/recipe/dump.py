"""Plain documents to YAML text that reads back the same, here and in a YAML 1.1 reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dmq_fx.recipe import scalars


class _Dumper(yaml.SafeDumper):
    """Quotes a string if YAML 1.1 or our reader would take it for something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern in (
    ("tag:yaml.org,2002:null", scalars.NULL),
    ("tag:yaml.org,2002:bool", scalars.TRUE),
    ("tag:yaml.org,2002:bool", scalars.FALSE),
    ("tag:yaml.org,2002:int", scalars.INTEGER),
    ("tag:yaml.org,2002:float", scalars.FLOAT),
    ("tag:yaml.org,2002:float", scalars.NOT_FINITE),
):
    _Dumper.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})\\Z"), None)


def to_yaml(document: Mapping[str, Any]) -> str:
    """`document` as YAML, keys in their order, innermost mappings and lists on one line."""
    return yaml.dump(
        dict(document), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )
