"""What a model does: generation, judges, rates with intervals."""
