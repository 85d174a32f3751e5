"""Tracing: a denoiser becomes one canonical torch.fx graph."""

from dmq_fx.tracing.bind import InputError, bind_inputs
from dmq_fx.tracing.canonicalize import canonicalize
from dmq_fx.tracing.device import retarget
from dmq_fx.tracing.fingerprint import graph_fingerprint
from dmq_fx.tracing.inputs import describe_inputs, rebuild_inputs, repeat_inputs
from dmq_fx.tracing.trace import TIMESTEP_NAMES, trace
from dmq_fx.tracing.traced import TracedInput, TracedModel

__all__ = [
    "TIMESTEP_NAMES",
    "InputError",
    "TracedInput",
    "TracedModel",
    "bind_inputs",
    "canonicalize",
    "describe_inputs",
    "graph_fingerprint",
    "rebuild_inputs",
    "repeat_inputs",
    "retarget",
    "trace",
]
