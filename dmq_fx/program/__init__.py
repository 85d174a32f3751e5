"""The program and its core rewrites: observers in, integers out."""

from dmq_fx.program.convert_activations import convert_activations
from dmq_fx.program.convert_weights import convert_weights
from dmq_fx.program.fold_norms import fold_norms
from dmq_fx.program.observe import find_activations, group_activations, insert_observers
from dmq_fx.program.output_shift import insert_output_shift
from dmq_fx.program.program import Activation, PassContext, Program

__all__ = [
    "Activation",
    "PassContext",
    "Program",
    "convert_activations",
    "convert_weights",
    "find_activations",
    "fold_norms",
    "group_activations",
    "insert_observers",
    "insert_output_shift",
]
