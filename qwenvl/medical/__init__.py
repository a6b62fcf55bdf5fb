"""Convert published medical archives to annotation files."""
