"""Read images and videos, and the sizes of both from their headers."""
