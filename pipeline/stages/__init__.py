"""The stages, one thin file each, in the order of the chain."""
