"""The stages that take a PyTorch image classifier to a bundle, and their command line."""

__version__ = "0.1.0"
