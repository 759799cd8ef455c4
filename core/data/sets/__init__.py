"""The built-in prompt sets (texts only)."""
