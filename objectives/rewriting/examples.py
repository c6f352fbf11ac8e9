"""What the forms of a user's model are judged on: rows of the user's data with their labels, or invented inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from objectives.bench import TaskSpec
from objectives.rewriting.tried import Request
from objectives.sources import gather
from objectives.task import TASKS
from spaces.errors import DataError

if TYPE_CHECKING:
    from spaces.lowering.load import Loaded, Port

Array = NDArray[Any]
INVENTED = 64  # rows, where there are no data


@dataclass(frozen=True)
class Examples:
    """Arrays [rows, ...] by input, and by output the labels as `objectives.task` takes them, none where invented."""

    inputs: dict[str, Array]
    labels: dict[str, Array]
    source: str  # for people

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))


def of_the_user(request: Request, loaded: Loaded) -> Examples:
    """The rows in `request.data`: the validation part of data that come split, else the test part, else all.

    Raises DataError, in words, where inputs or labels are missing or have another shape than the model's.
    """
    arrays = gather(TaskSpec(kind=request.kind or "classification", data=request.data), seed=0, root=request.root)
    part = next((f"_{name}" for name in ("validation", "test") if any(key.endswith(f"_{name}") for key in arrays)), "")
    own = {*(port.name for port in loaded.inputs), *loaded.outputs, *(f"y_{output}" for output in loaded.outputs)}
    if odd := next((key for key in arrays if key.endswith(("_val", "_valid", "_dev")) and key not in own), ""):
        raise DataError(f"{request.data}: has an array {odd!r}; call the part that decides x_validation, y_validation")
    inputs = {}
    for port in loaded.inputs:
        name = _found(arrays, [port.name, "x"] if len(loaded.inputs) == 1 else [port.name], part)
        if name is None:
            held = ", ".join(arrays) or "nothing"
            wanted = f"{port.name!r}" + (" (or 'x')" if len(loaded.inputs) == 1 else "")
            raise DataError(f"{request.data}: has no array {wanted}, which the model takes; it holds {held}")
        inputs[port.name] = _fitting(arrays[name], port, f"{request.data}: {name}", _padding(loaded, port))
    count = {name: len(array) for name, array in inputs.items()}
    if len(set(count.values())) > 1 or not min(count.values()):
        raise DataError(f"{request.data}: its inputs have {count} rows; give all the same number, one or more")
    labels = {}
    for output in loaded.outputs:
        single = ["y"] if len(loaded.outputs) == 1 else []
        name = _found(arrays, [f"y_{output}", *single, *([output] if output not in inputs else [])], part)
        if name is not None:
            labels[output] = _packed(arrays[name], f"{request.data}: {name}")
            if _tags(loaded, output, labels[output]):
                labels[output] = _ended(labels[output], arrays, part)
            if len(labels[output]) != min(count.values()):
                raise DataError(
                    f"{request.data}: {name} has {len(labels[output])} rows, where the inputs have "
                    f"{min(count.values())}; give a label for each"
                )
    if not labels:
        wanted = "y" if len(loaded.outputs) == 1 else " or ".join(f"y_{output}" for output in loaded.outputs)
        raise DataError(
            f"{request.data}: has no labels, so that no drop can be measured; add an array {wanted}, or leave --data "
            f"out and let --allow-lossy decide; it holds {', '.join(arrays)}"
        )
    return Examples(inputs, labels, f"{request.data}{', ' + part[1:] + ' part' if part else ''}")


def invented(loaded: Loaded, ports: Sequence[Port]) -> Examples:
    """Rows of a normal distribution, and of tokens from 1 up; of different lengths where the model has a mask."""
    random = np.random.default_rng(0)
    words = _vocabulary(loaded)
    inputs = {}
    for port in ports:
        shape = (INVENTED, *(size for size in port.shape[1:] if size is not None))
        if "int" in port.dtype:
            inputs[port.name] = random.integers(min(1, words - 1), words, shape).astype(port.dtype)
        elif port.dtype == "bool":
            inputs[port.name] = random.integers(0, 2, shape).astype(bool)
        else:
            inputs[port.name] = random.standard_normal(shape).astype(port.dtype)
        padding = _padding(loaded, port)
        if padding is not None:
            rows = shape[:-1] if "int" in port.dtype else shape[:1]  # of tokens each sentence ends for itself
            steps = shape[len(rows)]
            ends = random.integers(1, steps + 1, rows)
            inputs[port.name][np.arange(steps) >= ends[..., None]] = padding
    return Examples(inputs, {}, "invented inputs")


def _padding(loaded: Loaded, port: Port) -> float | None:
    """What the model's own mask leaves out of an input; None where it has no mask for such."""
    if len(port.shape) >= 2 and "int" in port.dtype:
        return 0 if any(getattr(layer, "mask_zero", False) for layer in loaded.layers) else None
    masks = [layer.mask_value for layer in loaded.layers if type(layer).__name__ == "Masking"]
    return masks[0] if masks and len(port.shape) == 3 else None


def _vocabulary(loaded: Loaded) -> int:
    sizes = [layer.input_dim for layer in loaded.layers if type(layer).__name__ == "Embedding"]
    return int(min(sizes, default=2))


def _packed(labels: Any, name: str) -> Array:
    """Labels as an array; where each step has one and lengths differ, filled up with what counts for none."""
    if isinstance(labels, np.ndarray) and labels.dtype != object:
        return labels
    if not len(labels) or not all(np.ndim(row) for row in labels):
        return np.asarray(labels)
    packed = _rectangle(labels, -1, name)
    if packed.dtype.kind == "f" and len({len(row) for row in labels}) > 1:
        raise DataError(f"{name}: values of each step that differ in length cannot be judged; give all the same length")
    return packed


def _tags(loaded: Loaded, output: str, labels: Array) -> bool:
    """Whether labels are of each step: classes, or yes and no."""
    if not loaded.keras or labels.ndim != 2:
        return False
    shape = dict(zip(loaded.outputs, (each.shape for each in loaded.model.outputs), strict=True))[output]
    return len(shape) == 3 and (shape[-1] != 1 or bool(np.all((labels == 0) | (labels == 1) | (labels == -1))))


def _ended(labels: Array, arrays: Mapping[str, Any], part: str) -> Array:
    """Labels of steps, those after a sequence's end counting for none, by what the data say of it."""
    valid = None
    if f"mask{part}" in arrays:
        valid = np.asarray(arrays[f"mask{part}"]).astype(bool)
    elif f"lengths{part}" in arrays:
        valid = np.arange(labels.shape[1]) < np.asarray(arrays[f"lengths{part}"])[:, None]
    if valid is None or valid.shape != labels.shape or labels.dtype.kind not in "iu":
        return labels
    return np.where(valid, labels.astype(np.int64), -1)


def _found(arrays: Mapping[str, Any], names: Sequence[str], part: str) -> str | None:
    return next((name + part for name in names if name + part in arrays), None)


def _fitting(array: Any, port: Port, name: str, padding: float | None) -> Array:
    x = _rectangle(array, padding, name)
    if x.dtype.kind not in "biuf":
        raise DataError(f"{name}: has dtype {x.dtype}; give numbers")
    if x.ndim == len(port.shape) - 1 and port.shape[-1] == 1:
        x = x[..., None]
    wanted = [size if size is not None else "any" for size in port.shape[1:]]
    if x.ndim != len(port.shape) or any(
        size is not None and size != got for size, got in zip(port.shape[1:], x.shape[1:], strict=False)
    ):
        raise DataError(f"{name}: has rows of shape {list(x.shape[1:])}, but the model takes {wanted}")
    return x.astype(port.dtype)


def _rectangle(array: Any, padding: float | None, name: str) -> Array:
    """Rows of different lengths filled up at the end with what the model's own mask leaves out."""
    if isinstance(array, np.ndarray) and array.dtype != object:
        return array
    rows = [np.asarray(row) for row in array]
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    if padding is None:
        raise DataError(f"{name}: its sequences differ in length, and the model has no mask; give all the same length")
    longest = max(len(row) for row in rows)
    packed = np.full((len(rows), longest, *rows[0].shape[1:]), padding, rows[0].dtype)
    for target, row in zip(packed, rows, strict=True):
        target[: len(row)] = row
    return packed


@dataclass(frozen=True)
class Question:
    """How one output is scored: a kind of `TASKS`, labels as it takes them, and what it wants made of the outputs."""

    kind: str
    y: Array
    binary: bool = False
    spread: float = 1.0  # of the targets of a regression, so that a drop is a share of it

    def score(self, output: Array) -> float:
        """The task's metric."""
        return TASKS[self.kind].score(self.y, self._read(output))

    def error(self, output: Array) -> float:
        """What drops are differences of: 1 - accuracy, or the rmse in shares of the targets' standard deviation."""
        return TASKS[self.kind].error(self.score(output)) / self.spread

    def stderr(self, output: Array) -> float:
        """The standard error of the score."""
        return TASKS[self.kind].stderr(self.y, self._read(output))

    def _read(self, output: Array) -> Array:
        if self.binary:
            p = output.reshape(self.y.shape)
            p = p if p.min(initial=0) >= 0 and p.max(initial=0) <= 1 else 1 / (1 + np.exp(-p))
            return np.stack([1 - p, p], axis=-1)
        return output.reshape(len(output), -1) if self.kind == "regression" else output


def question(labels: Array, output: Array, kind: str, name: str) -> Question:
    """How to score `output` [rows, ...] by `labels`; `kind` is "" where it follows from the two.

    Whole numbers with one axis less than the outputs name classes; so do rows with a single one. Zeros and ones beside
    outputs of their own shape are yes or no. Everything else is regression. Raises DataError where nothing fits.
    """
    y, shape = np.asarray(labels), output.shape
    if y.ndim == output.ndim and y.shape[-1] == 1 and shape[-1] != 1:
        y = y[..., 0]
    whole = y.dtype.kind in "biu" or (y.dtype.kind == "f" and bool(np.all(y == np.rint(y))))
    if kind != "regression" and whole:
        if y.shape == shape[:-1] and shape[-1] > 1:
            _check_classes(y, shape[-1], name)
            return Question("tagging" if y.ndim > 1 else "classification", y.astype(np.int64))
        if y.shape == shape and shape[-1] > 1 and np.all((y == 0) | (y == 1)) and np.all(y.sum(-1) == 1):
            return Question("tagging" if y.ndim > 2 else "classification", y.argmax(-1).astype(np.int64))
        if y.shape == shape and y.ndim > 2 and _padded_one_hot(y, output):
            return Question("tagging", np.where(y.sum(-1) == 1, y.argmax(-1), -1).astype(np.int64))
        if y.size == output.size and _yes_or_no(y):
            flat = y.reshape(len(y), -1)
            single = flat.shape[1] == 1
            return Question(
                "classification" if single else "tagging",
                (flat[:, 0] if single else flat).astype(np.int64),
                binary=True,
            )
    if kind in ("", "regression") and y.size == output.size and len(y) == len(output) and y.dtype.kind in "biuf":
        flat = y.reshape(len(y), -1).astype(np.float32)
        return Question("regression", flat, spread=float(flat.std()) or 1.0)
    raise DataError(
        f"{name}: labels of shape {list(y.shape[1:])} and dtype {y.dtype} do not fit the model's output "
        f"{list(shape[1:])}{' as ' + kind if kind else ''}; give class numbers with one axis less than the output, "
        "or values of the same shape"
    )


def _yes_or_no(y: Array) -> bool:
    """Whether all are 0 or 1, but for -1 after a sequence's end."""
    after = y == -1
    ended = y.ndim > 1 and bool(np.all(np.diff(after.astype(np.int8), axis=1) >= 0) and not after[:, 0].any())
    return bool(np.all((y == 0) | (y == 1) | (after if ended else False)))


def _padded_one_hot(y: Array, output: Array) -> bool:
    """Whether rows with a single one name classes, and rows without any are after an end: probabilities say so too."""
    rows = y.sum(-1)
    only = bool(np.all((y == 0) | (y == 1)) and rows.max(initial=0) == 1 and rows.min(initial=0) == 0)
    return only and bool(np.allclose(output.sum(-1), 1, atol=1e-3))


def _check_classes(y: Array, classes: int, name: str) -> None:
    if y.max(initial=0) >= classes or y.min(initial=0) < -1:
        raise DataError(
            f"{name}: labels go from {int(y.min())} to {int(y.max())}, but the model has {classes} classes, 0 to "
            f"{classes - 1}"
        )
