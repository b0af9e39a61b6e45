"""The backends: one file each, named after the engine; helpers begin with an underscore."""
