"""What needs PyTorch: models, data, training, import of checkpoints, and export to bundles.

The runtime (`druse`) never imports this package; commands from here join its command line through an entry point.
"""
