"""Devices on which artifacts are timed."""

from objectives.latency.devices.device import DEVICES, Device, device, reached

__all__ = ["DEVICES", "Device", "device", "reached"]
