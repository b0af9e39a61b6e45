"""Attacks and faults on everything that assay reads."""
