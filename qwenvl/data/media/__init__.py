"""Read images and videos, and their sizes from the headers."""
