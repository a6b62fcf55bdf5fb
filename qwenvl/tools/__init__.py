"""Command-line tools, one thin module per command."""
