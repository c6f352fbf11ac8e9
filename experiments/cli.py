"""The command line. Each command imports what it needs when it runs, so that `brisk --help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from spaces.errors import BriskError

INTERRUPTED = 130

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="BRISK_HOME",
    default=Path("brisk-home"),
    show_default="BRISK_HOME, else ./brisk-home",
    help="The folder that keeps studies, MLflow's store and finished stages.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="brisk-rnn", prog_name="brisk")
def cli() -> None:
    """Find the fastest sequence model that is accurate enough, measured on the device where it will run.

    `brisk run digits` runs a shipped study; `brisk show digits` prints its front; `brisk export` writes the model you
    choose, verified.
    """


@cli.command()
@click.argument("spec")
@click.option("--trials", type=click.IntRange(min=1), help="Outcomes to reach, those of an earlier run counted in.")
@click.option("--timeout", metavar="DURATION", help="Begin nothing new after so long, as 90s, 20m or 2h.")
@click.option("--stop-when", metavar="RULE", help='Stop once a point keeps within bounds, or "settled".')
@click.option(
    "--workers", type=click.IntRange(min=1), help="Worker processes sharing the cores; by default one a core."
)
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one key of the spec; repeatable.")
@click.option("--name", metavar="STUDY", help="The study's name; by default the spec's.")
@click.option("--rehearse", is_flag=True, help="Train nothing: invented figures that show in seconds how a study goes.")
@json_option
@home_option
def run(spec: str, sets: tuple[str, ...], as_json: bool, home: Path, rehearse: bool, **budget: Any) -> None:
    """Start the study of SPEC, a TOML file or a preset's name, or go on with it; then print its front."""
    from experiments.launch import launch

    with _told_of("everything finished so far is kept, the same command goes on"):
        launch(spec, sets, home=home, rehearse=rehearse, as_json=as_json, **budget)


@cli.command()
@click.argument("study")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the front as an interactive page.")
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Write the front as a picture.")
@json_option
@home_option
def show(study: str, html: Path | None, png: Path | None, as_json: bool, home: Path) -> None:
    """Print a study's front, its baseline and its counts; works while the study runs."""
    from experiments.show import show_study

    show_study(home, study, html=html, png=png, as_json=as_json)


@cli.command()
@click.argument("study")
@click.argument("rule")
@json_option
@home_option
def pick(study: str, rule: str, as_json: bool, home: Path) -> None:
    """Print the point of STUDY that RULE chooses: knee, fastest, best, or bounds such as "drop<=0.005,size_kb<=50"."""
    from experiments.show import pick_point

    pick_point(home, study, rule, as_json=as_json)


@cli.command()
@click.argument("study")
@click.option("--pick", "rule", metavar="RULE", help="The rule that chooses the point; by default knee.")
@click.option("--trial", metavar="N", help="The trial to export, not a rule: a number, baseline, or rewrite-1 ...")
@click.option("--to", required=True, metavar="FORM", help="tflite, savedmodel, tfserving, keras or streaming.")
@click.option("--frames", type=click.IntRange(min=1), help="Time steps a call of --to streaming; by default one frame.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder that is absent or empty.")
@click.option("--overwrite", is_flag=True, help="Replace what is in the folder.")
@json_option
@home_option
def export(study: str, rule: str | None, trial: str | None, home: Path, **wanted: Any) -> None:
    """Write the chosen model of STUDY, load it in a fresh process, and leave it only if it does what was measured."""
    from experiments.export import export_point

    export_point(home, study, rule=rule, trial=trial, **wanted)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder that is absent or empty.")
@click.option("--data", default="", help="Rows with labels: .npz, .csv, .parquet, module:function or a preset.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.005,
    show_default=True,
    help="Of accuracy, or of rmse in shares of the targets' standard deviation; needs --data.",
)
@click.option("--allow-lossy", is_flag=True, help="Without --data: choose quantised forms too, their error unjudged.")
@click.option("--task", "kind", type=click.Choice(["classification", "tagging", "regression"]), help="If unclear.")
@click.option("--batch", "batches", default="1", show_default=True, metavar="N,...", help="Sequences a call.")
@click.option("--time-steps", default="", metavar="T,...", help="Where the model's length is free; one file for each.")
@click.option(
    "--streaming",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=1,
    metavar="[FRAMES]",
    help="Also a form that takes the next frames and the state.",
)
@click.option("--period", default="10ms", show_default=True, help="From call to call of the streaming form.")
@click.option("--custom", multiple=True, metavar="MODULE:NAME", help="A layer of yours that the model needs.")
@click.option("--unsafe", is_flag=True, help="Let the file run Python code that it holds, as Lambda layers do.")
@click.option("--device", default="local", show_default=True, help="Where to measure: local or fake.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--scenario", default="burst", show_default=True, help="burst, or paced:10ms for a call every 10 ms.")
@click.option("--overwrite", is_flag=True, help="Replace what is in the folder.")
@json_option
def rewrite(
    model: Path,
    out: Path,
    batches: str,
    time_steps: str,
    overwrite: bool,
    as_json: bool,
    kind: str | None,
    **asked: Any,
) -> None:
    """Write MODEL, a trained .keras or .h5 file or SavedModel, as the fastest .tflite with the same weights.

    Every lowering and bit width is made, checked against the original and measured; the ledger says why each was not
    chosen.
    """
    from experiments.rewrite import Wish, rewrite_model

    wish = Wish(
        model,
        batches=_numbers("--batch", batches) or (1,),
        time_steps=_numbers("--time-steps", time_steps),
        kind=kind or "",
        **asked,
    )
    with _told_of("nothing was written"):
        rewrite_model(wish, out=out, overwrite=overwrite, as_json=as_json)


@contextmanager
def _told_of(state: str) -> Iterator[None]:
    """Where Ctrl-C ends a command, say how things stand then."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"brisk: interrupted; {state}", err=True)
        sys.exit(INTERRUPTED)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from 1 up, separated by commas, each once."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"{option} {text}: give whole numbers from 1 up, separated by commas")
    return tuple(dict.fromkeys(int(part) for part in parts))


@cli.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL...")
@click.option("--device", default="local", show_default=True, help="Where to measure: local or fake.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences a call.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--scenario", default="burst", show_default=True, help="burst, or paced:10ms for a call every 10 ms.")
@click.option("--time-steps", type=click.IntRange(min=1), help="Where a file leaves its length free.")
@click.option("--custom", multiple=True, metavar="MODULE:NAME", help="A layer of yours that a Keras file needs.")
@click.option("--unsafe", is_flag=True, help="Let a Keras file run Python code that it holds, as Lambda layers do.")
@json_option
def measure(models: tuple[Path, ...], as_json: bool, **conditions: Any) -> None:
    """Measure .tflite files, SavedModel folders and Keras files, interleaved, so that they compare."""
    from experiments.measure import measure_models

    measure_models(models, as_json=as_json, **conditions)


@cli.command()
@click.argument("spec")
@click.option("--set", "sets", multiple=True, metavar="KEY.PATH=VALUE", help="Change one key of the spec; repeatable.")
@json_option
def check(spec: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Check a spec and its data without training anything."""
    from experiments.check import check_spec

    check_spec(spec, sets, as_json=as_json)


@cli.command()
@click.argument("study")
@click.option("--port", type=click.IntRange(1, 65535), help="By default a free one.")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@home_option
def ui(study: str, port: int | None, browser: bool, home: Path) -> None:
    """Open the MLflow UI on the front of STUDY."""
    from experiments.ui import serve

    serve(home, study, port, browser)


@cli.command()
@click.argument("study")
@home_option
def sync(study: str, home: Path) -> None:
    """Bring MLflow up to date with STUDY: whatever is missing there is sent again."""
    from experiments.publish import sync_study

    sync_study(home, study)


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look at the machine: versions, shadowed names, clock, devices, and whether a measurement can be trusted here."""
    from experiments.doctor import doctor as report

    report(as_json=as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends with one paragraph and an exit code, never with a traceback."""
    command: Callable[..., Any] = cli.main
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # our matrices are small, and the cores are the workers'
    try:
        command(args=arguments, prog_name="brisk", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("brisk: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BriskError as error:
        click.echo(f"brisk: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody to tell
        sys.exit(0)
