"""From PyTorch to bundles: the networks' inference form, their export, and its check."""
