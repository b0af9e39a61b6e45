"""From a model to graphs of every precision, quantized ones included."""
