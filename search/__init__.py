"""How the space is searched: what to try next, in which process, and what is on the front."""
