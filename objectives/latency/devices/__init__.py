"""Devices on which artifacts are timed."""

from objectives.latency.devices.device import DEVICES, Device, comparable, device

__all__ = ["DEVICES", "Device", "comparable", "device"]
