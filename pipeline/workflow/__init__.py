"""How a stage is declared, run, recorded, found up to date, and how it speaks to the user."""
