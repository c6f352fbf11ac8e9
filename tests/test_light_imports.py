"""What the parent process imports stays light: no TensorFlow, and help at once."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "tf_keras", "keras", "mlflow", "optuna", "pandas", "sklearn", "matplotlib", "plotly", "numpy")
PARENT = {
    "experiments.cli": HEAVY,
    "experiments.launch": ("tensorflow", "tf_keras", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "plotly"),
    "search.study": ("tensorflow", "tf_keras", "keras", "mlflow", "pandas", "sklearn", "matplotlib", "plotly"),
    "search.tracking": ("tensorflow", "tf_keras", "keras", "mlflow", "matplotlib", "plotly"),
    "experiments.report": ("tensorflow", "tf_keras", "keras", "mlflow", "optuna", "matplotlib", "plotly"),
    "objectives.latency.devices": ("tensorflow", "tf_keras", "keras", "optuna", "mlflow", "ai_edge_litert"),
}


@pytest.mark.parametrize("module", PARENT)
def test_importing_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & set(PARENT[module])
