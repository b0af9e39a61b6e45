"""The command line: commands, their options and how each runs the stages."""
