"""Utilities that every subpackage may import; they know neither models nor data."""
