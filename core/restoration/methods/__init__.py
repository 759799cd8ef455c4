"""Published post-hoc methods as rows of one table: same inputs, same budget, same outcome as our own."""
