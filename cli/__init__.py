"""The command line: words and pixels, no arithmetic."""
