"""Which modules, and which training rows, cost the model its safety."""
