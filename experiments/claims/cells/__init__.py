"""The cells claim: what every cell learns, and how long it takes, at equal width."""
