"""The calculation: no terminal, no command line, importable on its own."""
