"""What backends share: which kernel a site gets, integer sites in the graph, one timestep a call, packages of code."""

from dmq_fx.lowering.kernels import Kernel, int8_kernels, require_kernels

__all__ = ["Kernel", "int8_kernels", "require_kernels"]
