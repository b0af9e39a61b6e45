"""Printed reports: one module for each stage, and those of `inspect`, `report` and `summary`."""
