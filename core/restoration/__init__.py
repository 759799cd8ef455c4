"""The step, its trust region and the controls."""
