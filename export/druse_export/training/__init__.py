"""Training with Lightning: settings in, a run directory with checkpoints and logs out."""
