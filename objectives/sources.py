"""Where arrays come from: the built-in presets, files, and functions of the user's own.

Every source gives a plain dict of arrays, unchecked: `x`, `y` and perhaps `lengths` or `mask`, or, where the splits are
given, the same with `_train`, `_validation`, `_test` behind each name (without `_validation` it is cut off the training
part). `objectives.data` checks them. Nothing here unpickles: object arrays of .npy and .npz files are refused.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from objectives.bench import TaskSpec
from objectives.presets import PRESETS
from objectives.sequences import UNLABELLED
from spaces.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "validation", "test")
Arrays = dict[str, Any]


def gather(task: TaskSpec, *, seed: int, root: str) -> Arrays:
    """The arrays that `task.data` names; relative paths and modules start from the folder `root`.

    Raises DataError where there is no such preset, file or function, or it cannot be read.
    """
    importable(root)
    if task.data in PRESETS:
        return PRESETS[task.data](task, np.random.default_rng(seed))
    path = Path(root, task.data)
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](_existing(path), task, root)
    if ":" in task.data:
        return _called(task.data)
    raise DataError(
        f"task.data: got {task.data!r}, which is no preset, no {', '.join(READERS)} file and no 'module:function'; "
        + nearest(task.data, PRESETS)
    )


def gather_unlabelled(task: TaskSpec, *, root: str) -> Arrays:
    """The arrays that `task.unlabelled` names, of which only x, lengths and mask are meant; otherwise like `gather`."""
    importable(root)
    path = Path(root, task.unlabelled)
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](_existing(path), replace(task, kind=UNLABELLED), root)
    if ":" in task.unlabelled:
        return _called(task.unlabelled, "task.unlabelled")
    raise DataError(
        f"task.unlabelled: got {task.unlabelled!r}, which is no {', '.join(READERS)} file and no 'module:function'"
    )


def importable(root: str) -> None:
    """Let modules in the folder `root` be imported (data, devices, samplers); searched last, it shadows nothing."""
    if (folder := str(Path(root).resolve())) not in sys.path:
        sys.path.append(folder)


def _npz(path: Path, task: TaskSpec, root: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def _npy(path: Path, task: TaskSpec, root: str) -> Arrays:
    files = {"x": path}
    if task.kind != UNLABELLED:
        if not task.targets:
            raise DataError(f"task.targets: not given, and {path.name} holds x only; name the .npy file that holds y")
        files["y"] = _existing(Path(root, task.targets))
    arrays = {}
    for name, file in files.items():
        try:
            arrays[name] = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise _unreadable(file, error) from error
    return arrays


def _table(path: Path, task: TaskSpec, root: str) -> Arrays:
    """A long table, .csv or .parquet, one row for each time step.

    Columns: `sequence` (any id, one for each sequence), `label` (the same in every row of a sequence, except for
    tagging; regression may have several, `label_...`), perhaps `step` (orders the rows, else they stand in order),
    perhaps `split` ("train", "validation" or "test"), and one numeric column for each feature, or `token` alone.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    labels = [str(name) for name in table.columns if name == "label" or str(name).startswith("label_")]
    if task.kind == UNLABELLED:  # neither labels nor parts mean anything here, and they may be empty
        table, labels = table.drop(columns=[*labels, "split"], errors="ignore"), []
    features = [str(n) for n in table.columns if n not in ("sequence", "step", "split") and n not in labels]
    _check_table(path, table, labels, features, task.kind)
    if "step" in table:
        table = table.iloc[np.argsort(_moments(path, table["step"]), kind="stable")]
    if "split" not in table:
        return _sequences(table, labels, features, task.kind)
    return {
        f"{name}_{part}": array
        for part, rows in table.groupby("split", sort=False)
        for name, array in _sequences(rows, labels, features, task.kind).items()
    }


def _check_table(path: Path, table: pd.DataFrame, labels: list[str], features: list[str], kind: str) -> None:
    import pandas as pd

    found = f"the columns are {', '.join(map(str, table.columns))}"
    if table.empty:
        raise DataError(f"{path}: has no rows; {found}")
    labelled = bool(labels) or kind == UNLABELLED
    if "sequence" not in table or not labelled or not features:
        lacking = "'sequence'" if "sequence" not in table else "'label'" if not labelled else "feature"
        raise DataError(
            f"{path}: has no {lacking} column; {found}; "
            "a table has sequence, label, one column for each feature, and perhaps step and split"
        )
    if index := next((name for name in features if re.fullmatch(r"(Unnamed: \d+)?|__index_level_\d+__", name)), None):
        raise DataError(
            f"{path}: the column {index!r} looks like the number of a row, which pandas writes without being asked "
            "(index=False leaves it out); take it out, or give it a name if it is a feature"
        )
    if len(labels) > 1 and kind != "regression":
        raise DataError(
            f"{path}: has {len(labels)} label columns, {', '.join(labels)}; a {kind} task takes one, and a regression "
            "task several"
        )
    if "token" in features and len(features) > 1:
        raise DataError(f"{path}: has a token column and features beside it; keep one or the other; {found}")
    for name in table.columns:
        if (empty := table[name].isna()).any():
            row = int(np.flatnonzero(empty)[0])
            raise DataError(f"{path}: column {name!r} is empty in {int(empty.sum())} rows, first in data row {row}")
    for name in (*features, *(labels if kind == "regression" else ())):
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise DataError(
                f"{path}: column {name!r} holds text, for instance {str(table[name].iloc[0])!r}; give numbers"
            )
    once = ["split", *(() if kind == "tagging" else labels)]
    for name in (name for name in once if name in table):
        kinds = table.groupby("sequence")[name].nunique()
        if (kinds > 1).any():
            perhaps = ", or make it a tagging task, which has a label for each step" if name in labels else ""
            raise DataError(
                f"{path}: {name!r} varies within sequence {str(kinds.idxmax())!r}; give it one value{perhaps}"
            )
    if "split" in table and (odd := set(table["split"]) - set(PARTS)):
        raise DataError(f"{path}: column 'split' holds {sorted(map(str, odd))}; the parts are {', '.join(PARTS)}")
    if "step" in table and (twice := table.duplicated(["sequence", "step"])).any():
        raise DataError(f"{path}: a step is given twice in sequence {str(table['sequence'][twice].iloc[0])!r}")


def _sequences(table: pd.DataFrame, labels: list[str], features: list[str], kind: str) -> Arrays:
    codes, _ = table["sequence"].factorize()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    x = _numbers(table["token" if features == ["token"] else features].to_numpy()[order])
    if kind == UNLABELLED:
        return {"x": np.split(x, starts[1:])}
    y = table[labels[0] if len(labels) == 1 else labels].to_numpy()[order]
    y = _numbers(y) if kind == "regression" else y
    return {"x": np.split(x, starts[1:]), "y": np.split(y, starts[1:]) if kind == "tagging" else y[starts]}


def _moments(path: Path, steps: pd.Series[Any]) -> Any:
    """What orders the rows: text would put step 10 before step 9."""
    import pandas as pd

    if pd.api.types.is_datetime64_any_dtype(steps):
        return steps.to_numpy("datetime64[ns]")  # of whatever zone
    if pd.api.types.is_numeric_dtype(steps) or pd.api.types.is_timedelta64_dtype(steps):
        return steps.to_numpy()
    with contextlib.suppress(ValueError, TypeError):
        return pd.to_datetime(steps, format="ISO8601", utc=True).to_numpy("datetime64[ns]")
    with contextlib.suppress(ValueError, TypeError):
        return pd.to_timedelta(steps).to_numpy()  # 09:59:00
    raise DataError(
        f"{path}: column 'step' holds text, for instance {str(steps.iloc[0])!r}; give numbers, or times such as "
        "2026-01-31T09:59:00 or 09:59:00, or leave the column out where the rows stand in order"
    )


def _numbers(values: Any) -> Any:
    """Columns of several kinds of numbers, as whether something is so beside how much, are objects till then."""
    return values.astype(np.float64) if values.dtype == object else values


def _called(place: str, key: str = "task.data") -> Arrays:
    """What the user's function gives."""
    module, _, name = place.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{key}: got {place!r}, but importing {module} failed with {_told(error)}") from error
    if not callable(function := getattr(imported, name, None)):
        raise DataError(f"{key}: got {place!r}, but module {module} has no function {name!r}")
    try:
        arrays = function()
    except (Exception, SystemExit) as error:  # a script's `sys.exit` is not ours
        raise DataError(f"{key}: {place} failed with {_told(error)}") from error
    if not isinstance(arrays, Mapping):
        raise DataError(f"{key}: {place} gave {type(arrays).__name__}; it must return a dict of arrays, x and y")
    return dict(arrays)


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such file; relative paths of [task] start from the folder of the spec")
    return path


def _unreadable(path: Path, error: Exception) -> DataError:
    if "pickle" in str(error) or "Object arrays" in str(error):
        return DataError(f"{path}: holds Python objects; save padded arrays of numbers, and `lengths`")
    return DataError(f"{path}: cannot be read as {path.suffix}: {error}")


READERS: dict[str, Callable[[Path, TaskSpec, str], Arrays]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _table,
    ".parquet": _table,
}
