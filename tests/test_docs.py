"""The documents say what is true: commands, settings, files."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from spica.cli import app
from spica.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/reference.md"]


def commands(command: Any, name: str = "spica") -> dict[str, Any]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return {name: command}
    found: dict[str, Any] = {}
    for key, each in inner.items():
        found |= commands(each, f"{name} {key}")
    return found


COMMANDS = commands(typer.main.get_command(app))


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_program_says() -> None:
    """docs/reference.md is up to date; `python scripts/write_reference.py` makes it so."""
    assert (ROOT / "docs" / "reference.md").read_text("utf-8") == load_script("write_reference").reference()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    """The help of each command holds a line that can be typed."""
    text = COMMANDS[name].help or ""
    assert re.search(rf"Example\[/bold\]: {name}\b", text), text


@pytest.mark.parametrize("document", ["README.md", "README.ja.md"])
@pytest.mark.parametrize("name", COMMANDS)
def test_both_readmes_tell_every_command(document: str, name: str) -> None:
    """No command is missing in either language."""
    assert name in (ROOT / document).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(document: str) -> None:
    """Every relative link and picture exists."""
    path = ROOT / document
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text("utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_setting_has_a_help_text_and_an_environment_variable() -> None:
    """A setting that people can't find might as well not exist."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.validation_alias is not None, name


def test_both_readmes_show_the_same_commands() -> None:
    """What is typed is the same in both languages."""

    def typed(document: str) -> list[str]:
        blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)
        lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
        return [line for line in lines if line]

    assert typed("README.md") == typed("README.ja.md")
