"""The deployment bundle: a reproducible archive that can be verified on the target machine."""
