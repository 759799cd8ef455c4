"""The step, the path that it takes within a drift budget, and the controls."""
