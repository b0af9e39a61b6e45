"""The verdict on a graph or engine, and all that it is made of."""
