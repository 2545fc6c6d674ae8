"""Slow, obvious twins of the native operations, mostly in float64, and the crystals that tests share."""
