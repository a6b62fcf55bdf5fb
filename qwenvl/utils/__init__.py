"""What every room may use: no model and no data in it."""
