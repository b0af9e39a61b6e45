"""Building an engine several times, and judging one that is built again on another machine."""
