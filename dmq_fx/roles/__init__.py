"""Sites and roles: the places of a graph that can be quantized, and what each does in a diffusion model."""

from dmq_fx.roles.find_sites import find_sites

__all__ = ["find_sites"]
