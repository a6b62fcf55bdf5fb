"""Pre-flight checks of a run: its data and its machine."""
