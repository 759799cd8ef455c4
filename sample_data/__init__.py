"""A small base model, its fine-tuned adapter and their records, really trained."""
