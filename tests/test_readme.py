"""The README says what is so: its tables are current, its commands and flags exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def _tables():
    spec = importlib.util.spec_from_file_location(
        "readme_tables", ROOT / "tests" / "readme_tables.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_current():
    assert _tables().filled(TEXT) == TEXT, "run: python tests/readme_tables.py"


COMMANDS = re.findall(r"^ {4}(actlake .+)$", TEXT.replace("\\\n", " "), flags=re.M)


def test_there_are_commands():
    assert len(COMMANDS) > 6


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    from jobs import cli

    verb, words = cli._verb(shlex.split(command)[1:])
    config = cli.parse(cli.VERBS[verb][0], words, prog=verb)
    assert config.json is False


def test_the_two_lines_stand_at_the_top():
    top = "\n".join(TEXT.splitlines()[:22])
    assert "pip install '.[demo]' && actlake demo" in top
    assert "pip install '.[test]' && pytest -n auto" in top


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
