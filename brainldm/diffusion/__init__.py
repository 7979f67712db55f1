"""Diffusion mathematics: schedules, objectives, samplers and guidance as pure functions on arrays."""
