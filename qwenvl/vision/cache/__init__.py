"""Features of a frozen encoder, kept on disk."""
