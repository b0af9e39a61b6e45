"""Exports a model to graphs of every precision, including the quantized ones."""
