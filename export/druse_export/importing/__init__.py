"""Checkpoints of the authors' code, read without executing them."""
