"""`brisk check`: a spec and its data, looked at without training anything."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.show import print_json
from experiments.spec import read
from objectives.bench import Bench
from objectives.data import load
from objectives.latency.devices import device
from search.isolate import CallFailed, Child, ChildDied
from spaces.errors import ModelError
from spaces.genotype import Architecture
from spaces.record import to_json


def check_spec(spec_name: str, sets: tuple[str, ...], *, as_json: bool) -> None:
    """Say what a study of this spec would search.

    Raises what `brisk run` would raise before it trains: SpecError for spec, sampler or device, DataError for the data,
    ModelError for the user's own model.
    """
    from search.samplers import named  # loads Optuna

    spec = read(spec_name, sets)
    named(spec.search.sampler)
    device(spec.bench(home="").device)
    data = load(spec.task, seed=spec.study.seed, root=spec.root)
    spec.space.check(spec.task.kind, data.signature.time_steps)
    bench = spec.bench(home="")
    model = looked_at(bench) if bench.model else None
    forms = {
        cell: len(spec.space.deployments(Architecture(cell, spec.space.units[0]), data.signature))
        for cell in spec.space.cell
    }
    found: dict[str, Any] = {
        "study": spec.study.name,
        "task": data.summary,
        "objectives": list(spec.objectives.names),
        "bounds": spec.objectives.bounds,
        "forms": forms,
        "trials": spec.study.trials,
    }
    if model and bench.model:
        found["model"] = {"name": bench.model.name, **model}
    if as_json:
        print_json(found)
        return
    bounds = ", ".join(f"{name} <= {bound:g}" for name, bound in found["bounds"].items()) or "none"
    click.echo(f"{spec_name}: the spec and its data are sound")
    click.echo(f"  data        {in_words(data.summary)}")
    click.echo(f"  objectives  {', '.join(found['objectives'])}; bounds: {bounds}")
    click.echo(f"  forms       of each trained model: {', '.join(f'{cell} {n}' for cell, n in forms.items())}")
    if model and bench.model:
        layers = f"{model['recurrent']} recurrent layer{'s' * (model['recurrent'] != 1)}"
        kept = f"{len(model['forms'])} forms with the same weights"
        click.echo(f"  baseline    {bench.model.name}, of {model['family']}: {layers}, {kept}")
    click.echo(f"Next: brisk run {spec_name}")


def looked_at(bench: Bench) -> dict[str, Any]:
    """What a worker finds of the user's own model; raises ModelError where it cannot be used."""
    with tempfile.TemporaryDirectory(prefix="brisk-") as home:
        child = Child(home=Path(home), name="check")
        try:
            prepared = child.call("objectives.judge:prepare", {"bench": to_json(replace(bench, home=home))})
        except (ChildDied, CallFailed) as error:
            raise ModelError(f"baseline.model: {bench.model and bench.model.path} cannot be opened: {error}") from None
        finally:
            child.close()
    found: dict[str, Any] = prepared["model"]
    return found


def in_words(summary: dict[str, Any]) -> str:
    """The data's summary as a person says it."""
    parts = " + ".join(f"{count} {part}" for part, count in summary["sequences"].items())
    step = f"tokens below {summary['vocabulary']}" if summary["vocabulary"] else f"{summary['features']} features"
    said = [f"{summary['kind']} of {summary['data']}: {parts} sequences", f"{summary['time_steps']} steps of {step}"]
    if summary["masked"]:
        said.append("lengths {} to {}, median {:g}".format(*(summary["lengths"][i] for i in (0, 2, 1))))
    if classes := summary.get("classes"):
        said.append(f"{len(classes)} classes of {min(classes.values())} to {max(classes.values())}")
    else:
        said.append(f"{summary['outputs']} outputs")
    return ", ".join(said)
