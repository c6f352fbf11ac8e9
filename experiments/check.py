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
from search.history import known_space
from search.isolate import CallFailed, Child, ChildDied
from search.warm import outside
from spaces.errors import ModelError
from spaces.gene import PREFIX, Gene
from spaces.genotype import Architecture
from spaces.record import from_json, to_json


def check_spec(spec_name: str, sets: tuple[str, ...], *, as_json: bool) -> None:
    """Say what a study of this spec would search.

    Raises what `brisk run` would raise before it trains: SpecError for spec, sampler or device, DataError for the data,
    ModelError for the user's own model.
    """
    from experiments.launch import check_threads, limits_of  # loads Optuna, as samplers do
    from search.samplers import named

    spec = read(spec_name, sets)
    plan = spec.plan(home="")
    bench = plan.bench
    named(spec.search.sampler)
    device(bench.device)
    check_threads(bench, limits_of(spec).workers)
    data = load(spec.task, seed=spec.study.seed, root=spec.root)
    spec.space.check(spec.task.kind, data.signature.time_steps)
    accelerated = bench.training.accelerator in ("gpu", "tpu")
    looked = looked_at(bench) if bench.model or bench.hypermodel or accelerated else {}
    model, explored = looked.get("model"), looked.get("hypermodel")
    space = known_space(plan, looked)
    teaching = {"distillation": spec.training.distillation, "hints": spec.training.hints}
    strange = list(outside(plan.warm_start, spec.root, space, data.signature, teaching))
    cells = [spec.space.hypermodel] if spec.space.hypermodel else spec.space.cell
    forms = {
        cell: len(spec.space.deployments(Architecture(cell, spec.space.units[0]), data.signature)) for cell in cells
    }
    found: dict[str, Any] = {
        "study": spec.study.name,
        "task": data.summary,
        "objectives": list(spec.objectives.names),
        "bounds": spec.objectives.bounds,
        "forms": forms,
        "trials": spec.study.trials,
    }
    if strange:
        found["not_tried"] = strange
    if model and bench.model:
        found["model"] = {"name": bench.model.name, **model}
    if explored:
        found["hypermodel"] = explored
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
    if explored:
        kind = "trains its models by itself" if explored["compiled"] else "leaves training to brisk"
        click.echo(f"  hypermodel  {spec.space.hypermodel}, of {explored['family']}, {kind}; its hyperparameters:")
        for gene in (from_json(Gene, plain) for plain in explored["genes"]):
            click.echo(f"              {gene.key.removeprefix(PREFIX)}: {gene.range}")
    for line in strange:
        click.echo(f"  warning     {line}")
    click.echo(f"Next: brisk run {spec_name}")


def looked_at(bench: Bench) -> dict[str, Any]:
    """What a worker finds of the user's own model, and of the user's code; raises InputError where they do not fit."""
    with tempfile.TemporaryDirectory(prefix="brisk-") as home:
        child = Child(home=Path(home), name="check")
        try:
            prepared = child.call("objectives.judge:prepare", {"bench": to_json(replace(bench, home=home))})
        except (ChildDied, CallFailed) as error:
            files = [file.path for file in (bench.model, bench.hypermodel) if file] or ["training.accelerator"]
            raise ModelError(f"{' and '.join(files)} cannot be opened: {error}") from None
        finally:
            child.close()
    return dict(prepared)


def in_words(summary: dict[str, Any]) -> str:
    """The data's summary as a person says it."""
    parts = " + ".join(f"{count} {part}" for part, count in summary["sequences"].items())
    step = f"tokens below {summary['vocabulary']}" if summary["vocabulary"] else f"{summary['features']} features"
    said = [f"{summary['kind']} of {summary['data']}: {parts} sequences", f"{summary['time_steps']} steps of {step}"]
    if more := summary.get("unlabelled"):
        said.append(f"{more} without labels")
    if summary["masked"]:
        said.append("lengths {} to {}, median {:g}".format(*(summary["lengths"][i] for i in (0, 2, 1))))
    if classes := summary.get("classes"):
        said.append(f"{len(classes)} classes of {min(classes.values())} to {max(classes.values())}")
    else:
        said.append(f"{summary['outputs']} outputs")
    return ", ".join(said)
