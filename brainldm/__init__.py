"""brainldm: latent diffusion for 3D brain MRI in JAX and Flax (Pinaya et al. 2022, arXiv 2209.07162)."""

__version__ = "0.1.0"
