"""The backends, one file each under the engine's name; helpers begin with an underscore."""
