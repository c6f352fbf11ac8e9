"""The user's own trained model as the data's terms meet it: the file, what it is fed, how its answers are read.

Light: the file is opened by `objectives.given`, in a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.errors import SpecError
from spaces.signature import PADDING, Signature

Array = NDArray[Any]
PACKAGE = 5  # what `modulefinder` calls a folder


@dataclass(frozen=True)
class ModelFile:
    """A .keras or .h5 file or a SavedModel folder, with what opening it needs (`spaces.lowering.load`); or the code
    that builds models, whose path is "module:build".

    `padding` is what it takes for the steps after a short sequence's end, once the model was looked at; None where it
    takes what the data have. `layers` is the sha256 of the code of `custom`, "" where there is none.
    """

    path: str  # absolute, or from the bench's root
    sha256: str
    custom: tuple[str, ...] = ()
    unsafe: bool = False
    padding: float | None = None
    layers: str = ""

    @property
    def name(self) -> str:
        """What people call it."""
        return Path(self.path).name


def code(place: str, root: str) -> ModelFile:
    """The user's code "module:build", with the sha256 of its module and of those in `root` that it imports.

    None of them is run. Raises SpecError where there is no such module.
    """
    module = place.partition(":")[0]
    top = module.split(".")[0]
    if (Path(root) / f"{top}.py").is_file() or (Path(root) / top).is_dir():
        finder = _Finder(path=[root])
        try:
            with contextlib.suppress(SyntaxError):  # importing it will say more
                finder.import_hook(module)
        except ImportError as error:
            raise SpecError(f"space.hypermodel: got {place!r}, but in {root} there is {error}; mend the name") from None
        files = {str(file) for found in finder.modules.values() if (file := getattr(found, "__file__", None))}
        return ModelFile(place, _digest([Path(file) for file in sorted(files)]))
    if (spec := importlib.util.find_spec(top)) is None:
        raise SpecError(
            f"space.hypermodel: got {place!r}, but there is no module {module} in {root}, and none is installed; put "
            "it beside the spec"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    sources = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    if sources:
        return ModelFile(place, _digest(sources))
    return ModelFile(place, sha256_of(Path(spec.origin)) if spec.origin and Path(spec.origin).is_file() else "")


def layers_of(custom: Sequence[str], root: str) -> str:
    """The sha256 of the code of custom layers, "module:Name" each; "" where there is none, or none is found."""
    found = []
    for place in custom:
        with contextlib.suppress(SpecError):  # opening the model will say more
            found.append(code(place, root).sha256)
    return hashlib.sha256("".join(found).encode()).hexdigest() if found else ""


class _Finder(ModuleFinder):
    """One that knows folders without an `__init__.py` for packages, as Python does."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        for folder in map(Path, path or self.path):
            ordinary = folder / name / "__init__.py", folder / f"{name}.py"
            if (folder / name).is_dir() and not any(one.exists() for one in ordinary):
                return None, str(folder / name), ("", "", PACKAGE)
        return super().find_module(name, path, parent)

    def load_package(self, fqname: str, pathname: str) -> Any:
        if Path(pathname, "__init__.py").exists():
            return super().load_package(fqname, pathname)
        package: Any = self.add_module(fqname)
        package.__path__ = [pathname]
        return package


def _digest(sources: Sequence[Path]) -> str:
    """Of the bytes of source files."""
    return hashlib.sha256("".join(sha256_of(file) for file in sources).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a file's bytes, or of the names and bytes of a folder's files."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    seen = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        seen.update(f"{file.relative_to(path)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return seen.hexdigest()


def fed(x: Array, model: ModelFile | None) -> Array:
    """The data's x as the user's model takes it, as it is where there is none: short sequences end in its own way."""
    if model is None or model.padding is None:
        return x
    return np.where(x == np.float32(PADDING), np.float32(model.padding), x)


def answered(output: Array, signature: Signature) -> Array:
    """Outputs [..., outputs] as the tasks take them: a single column that tells two classes apart becomes two."""
    if signature.kind == "regression":
        return output.reshape(len(output), -1)
    if output.shape[-1] != 1:
        return output
    second = output if probable(output) else 1.0 / (1.0 + np.exp(-output))
    return np.concatenate([1.0 - second, second], axis=-1)


def probable(output: Array) -> bool:
    """Whether outputs are probabilities, as only those keep within 0 and 1 on all of some rows."""
    return bool(np.all((output >= 0) & (output <= 1 + 1e-6)))
