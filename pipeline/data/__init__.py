"""Data sets: their sources, digests and files."""
