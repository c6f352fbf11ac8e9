"""Deployment stations: lower, quantise, interpret."""
