"""Check the data and the machine of a run before it starts."""
