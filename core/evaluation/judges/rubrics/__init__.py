"""Ready rubrics, a YAML file each, with the source and licence of what they follow."""
