"""Training stations: fit, distil, prune."""
