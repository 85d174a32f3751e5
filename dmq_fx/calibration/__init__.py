"""Calibration: the denoiser's real inputs, kept and streamed."""
