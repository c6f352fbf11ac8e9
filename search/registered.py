"""What MLflow loads of a registered model: it travels inside the model, with the modules of ours that it imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Registered:
    """A .tflite file behind MLflow's `predict`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Outputs [N, ...] for raw sequences [N, time, features] or tokens [N, time], given alone or as {"x": ...}."""
        from objectives.deployment.interpreter import predict

        x = model_input["x"] if isinstance(model_input, dict) else model_input
        return np.asarray(predict(self._path, np.asarray(x)))


def _load_pyfunc(path: str) -> Registered:
    """MLflow's entry point; `path` is the model's file."""
    return Registered(Path(path))


def travelling_code(folder: Path) -> list[str]:
    """Copy this module and those of ours that it imports into `folder`; returns the packages there."""
    from modulefinder import ModuleFinder

    house = Path(__file__).resolve().parents[1]
    finder = ModuleFinder(path=[str(house)])
    finder.import_hook(__name__)
    for module in finder.modules.values():
        source = Path(getattr(module, "__file__", None) or "")
        if source.is_file():
            target = folder / source.resolve().relative_to(house)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return sorted(str(path) for path in folder.iterdir())
