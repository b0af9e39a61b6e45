"""Searches for the first value of a graph that differs from the model's."""
