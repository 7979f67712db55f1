"""Benchmarks that compare: the same weights and work through MONAI on PyTorch and through brainldm, in turns.

Run from the checkout: `python -m benchmarks --help`; docs/benchmarks/README.md says what is measured.
"""
