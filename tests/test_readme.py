"""The README says what is so: its commands are those that CI runs, its figures those that a script measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

from experiments.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLAIMS = ROOT / "experiments" / "claims"


def test_it_shows_the_two_commands_and_ci_runs_the_second() -> None:
    assert "pip install -c constraints.txt -e . && brisk run digits" in README
    assert "pip install -c constraints.txt -e '.[test]' && pytest" in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"pip install .*-c constraints.txt -e '\.\[test\]'\npytest\n", ci)


def test_every_command_it_names_exists() -> None:
    named = set(re.findall(r"`brisk ([a-z]+)", README))
    assert named <= set(cli.commands)
    assert set(cli.commands) <= named


def test_its_table_is_the_one_that_the_claim_wrote() -> None:
    claim = json.loads((CLAIMS / "digits.json").read_text(encoding="utf-8"))
    assert claim["table"] in README
    assert "experiments/claims/digits.png" in README
    assert (CLAIMS / "digits.png").stat().st_size > 10_000


def test_every_claims_script_it_names_is_there() -> None:
    for name in re.findall(r"experiments/claims/(\w+)\.py", README):
        assert (CLAIMS / f"{name}.py").is_file()
