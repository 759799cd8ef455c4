"""Checkpoints in and out: references, the fit of a pair, adapters."""
