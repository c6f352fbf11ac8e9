"""Devices on which artifacts are timed."""

from objectives.latency.devices.device import DEVICES, Device, device, measured_on

__all__ = ["DEVICES", "Device", "device", "measured_on"]
