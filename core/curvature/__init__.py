"""Curvature of the drift: operators v -> F v and damped solves, one idea a file."""
