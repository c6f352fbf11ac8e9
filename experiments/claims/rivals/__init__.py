"""Other searches of the same space (`python -m experiments.claims.rivals`)."""
