"""The report of a model for people who did not run it, as an HTML page and as Markdown."""
