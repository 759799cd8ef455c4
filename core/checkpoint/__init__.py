"""Checkpoints: references, opening a pair by exact names, the fit check, adapters in and out."""
