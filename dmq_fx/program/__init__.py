"""The program and its core rewrites: observers in, integers out."""

from dmq_fx.program.convert import convert_activations, convert_weights
from dmq_fx.program.observe import find_activations, insert_observers
from dmq_fx.program.program import Activation, PassContext, Program

__all__ = [
    "Activation",
    "PassContext",
    "Program",
    "convert_activations",
    "convert_weights",
    "find_activations",
    "insert_observers",
]
