"""Records: readers, chat templates, batches, splits, built-in prompt sets."""
