"""Loading: a `--model` string or a Python object becomes a denoiser that can be traced."""

from dmq_fx.models.build import build_denoiser
from dmq_fx.models.builtin import builtin_names
from dmq_fx.models.config import config_of
from dmq_fx.models.example_inputs import example_inputs
from dmq_fx.models.fingerprint import fingerprint
from dmq_fx.models.load import load_denoiser_on_meta, load_model
from dmq_fx.models.loaded import LoadedModel

__all__ = [
    "LoadedModel",
    "build_denoiser",
    "builtin_names",
    "config_of",
    "example_inputs",
    "fingerprint",
    "load_denoiser_on_meta",
    "load_model",
]
