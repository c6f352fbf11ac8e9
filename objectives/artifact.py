"""An artifact: the file that ships, and what is known of it without running it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Artifact:
    """A .tflite file, which a home's cache keeps under its sha256 (`Cache.artifact`): homes may be moved and copied.

    `realised_bits` is read back from the file's tensors: width of each constant matrix by role, for instance
    {"input": 8, "recurrent": 4, "head": 32}; where a request came to nothing it differs from what was asked for.
    """

    sha256: str
    size_bytes: int
    batch: int
    realised_bits: dict[str, int]
    exporter: str  # for instance "brisk loop, 4 steps an iteration" or "Keras 3, static batch, TFLite dynamic range"
    format: str = "tflite"
    keeps_state: bool = False  # from call to call, unless its caller resets it before each
    compressed_bytes: int = 0  # of the file packed with zlib, as it travels: what zeros among the weights save
