"""How a stage is declared, run, recorded and found up to date."""
