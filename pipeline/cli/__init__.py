"""The command line: commands, their options, what they print, and signals."""
