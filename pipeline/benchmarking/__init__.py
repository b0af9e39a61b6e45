"""Measuring engines side by side."""
