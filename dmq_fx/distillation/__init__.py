"""Data-free distillation of a quantized denoiser: a student with learned weights and ranges on its teacher's path."""
