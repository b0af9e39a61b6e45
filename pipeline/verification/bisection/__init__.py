"""The search for the first value of a graph that is not the model's."""
