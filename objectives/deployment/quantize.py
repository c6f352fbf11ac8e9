"""ai-edge-quantizer's door: gives a float .tflite narrower weights, by the part each matrix plays.

The graph is converted once and quantised many times, in milliseconds and through the bodies of WHILE loops. Integer
widths are "dynamic range": symmetric weights with a scale per output channel, activations quantised at each call,
integer products, float results. Only named matrices are touched: never an elementwise operation, whatever its name.
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any

from ai_edge_quantizer import qtyping, quantizer

from objectives.deployment.graph import Matrix, matrices
from objectives.deployment.lookups import with_lookups
from spaces.catalog import BITS, ROLES, STATIC_BITS, asked_bits

WIDTHS = tuple(bits for bits in BITS if bits not in STATIC_BITS)
"""The bits that can be asked for here; `catalog.asked_bits` says what each means for which role."""

_REFUSED = {("BATCH_MATMUL", 4), ("GATHER", 16), ("GATHER", 8), ("GATHER", 4)} | {
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", width) for width in (16, 8, 4)
}
"""Operation and width that the tool does not know: such matrices stay as they are, and `realised_bits` shows it."""


def quantize(model: bytes, bits: str, *, head: bool = False) -> bytes:
    """The float32 .tflite with its weights in `bits` (one of `WIDTHS`); "32" gives it back unchanged.

    The head stays float unless `head`: it is the largest single source of int8 error and saves nothing, and an int8
    head slows the next call of a fused LSTM fourfold. What cannot be narrowed stays as it was (`realised_bits` tells).
    Raises ValueError for bits that are not in `WIDTHS`.
    """
    if bits not in WIDTHS:
        raise ValueError(f"bits must be one of {', '.join(WIDTHS)}, but got {bits!r}")
    if bits == "32":
        return model
    widths = asked_bits(bits, head=head)
    if "embedding" in widths:
        model = with_lookups(model)
    uses = matrices(model)
    if any(use.bits != 32 for use in uses):
        raise ValueError("only a float32 model can be quantised, but got one that is quantised already")
    wanted = [use for use in uses if use.role in widths and (use.operation, widths[use.role]) not in _REFUSED]
    if not wanted:
        return model
    tool = quantizer.Quantizer(bytearray(model))
    for use in wanted:
        _ask(tool, use, widths[use.role])
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar ignores being switched off
        narrowed = tool.quantize(enable_progress_report=False, enable_progress_bar=False).quantized_model
    return bytes(narrowed)


def realised_bits(model: bytes) -> dict[str, int]:
    """Role -> width in which its matrices are stored, read back from the file; the widest where a role has several."""
    uses = matrices(model)
    roles = [role for role in ROLES if any(use.role == role for use in uses)]
    return {role: max(use.bits for use in uses if use.role == role) for role in roles}


def _ask(tool: Any, use: Matrix, width: int) -> None:
    """Ask for one operation's matrix in `width` bits; the tool knows an operation by the names of what it writes."""
    scope = f"^{re.escape(';'.join(use.outputs))};$"
    name = qtyping.TFLOperationName(use.operation)
    if width == 16:
        tool.add_weight_only_config(scope, name, 16, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING)
    else:
        tool.add_dynamic_config(scope, name, width)
