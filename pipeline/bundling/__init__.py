"""The deployment bundle: one reproducible archive that proves itself on the target."""
