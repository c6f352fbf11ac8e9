"""Latency: timing, the meter and the devices it runs on."""
