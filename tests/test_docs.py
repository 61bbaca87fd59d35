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
PAIRS = [(f"{name}.md", f"{name}.ja.md") for name in ("README", "docs/speed", "docs/learning", "docs/security")]
GUIDES = [document for pair in PAIRS for document in pair]
DOCUMENTS = [*GUIDES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/reference.md"]


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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_short_options(name: str) -> None:
    """-h, -v and -q, as people try them."""
    command = COMMANDS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    options = {option for parameter in command.get_params(context) for option in parameter.opts}
    assert {"-h", "-v", "-q"} <= options


@pytest.mark.parametrize("document", ["README.md", "README.ja.md"])
@pytest.mark.parametrize("name", COMMANDS)
def test_both_readmes_tell_every_command(document: str, name: str) -> None:
    """No command is missing in either language."""
    assert name in (ROOT / document).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_files_lead_somewhere(document: str) -> None:
    """Every relative link and picture exists, and so does the heading that it names."""
    path = ROOT / document
    lost = []
    for target, heading in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", path.read_text("utf-8")):
        there = path.parent / target if target else path
        if not there.exists() or (heading and heading not in anchors(there)):
            lost.append(f"{target}#{heading}")
    assert lost == []


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_has_a_help_text_and_an_environment_variable() -> None:
    """A setting that people can't find might as well not exist."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.validation_alias is not None, name


def typed(document: str) -> list[str]:
    """What a page's blocks tell people to type."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / document).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize(("english", "japanese"), PAIRS, ids=[english for english, _ in PAIRS])
def test_both_languages_show_the_same_commands(english: str, japanese: str) -> None:
    """What is typed is the same in both languages."""
    assert typed(english) == typed(japanese)


@pytest.mark.parametrize(("english", "japanese"), PAIRS, ids=[english for english, _ in PAIRS])
def test_both_languages_name_the_same_options(english: str, japanese: str) -> None:
    """Commands, options and settings in the text are the same in both languages, so that neither falls behind."""
    texts = [(ROOT / document).read_text("utf-8") for document in (english, japanese)]
    first, second = (set(re.findall(r"SPICA_[A-Z_]+|--[a-z][a-z-]+|spica [a-z]+", text)) for text in texts)
    assert first == second


LINES = sorted({re.sub(r"^(\w+=\S+ )+", "", line) for document in GUIDES for line in typed(document)})


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("spica ")])
def test_every_line_that_is_shown_is_accepted(line: str) -> None:
    """The command, its options and its arguments exist."""
    words = line.split()
    name = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len, default=line)
    COMMANDS[name].make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_setting_in_the_text_exists(document: str) -> None:
    """No page names a command or a setting that is not there."""
    text = (ROOT / document).read_text("utf-8")
    first = {name.split()[1] for name in COMMANDS}
    settings = {choice for field in Settings.model_fields.values() for choice in names_of(field.validation_alias)}
    assert {word for word in re.findall(r"`spica ([a-z]+)", text) if word not in first} == set()
    assert {word for word in re.findall(r"SPICA_[A-Z_]+", text) if word not in settings} == set()


def names_of(alias: Any) -> list[str]:
    """Of a setting's environment variables."""
    return [str(choice) for choice in alias.choices]


def test_the_tour_leads_through_files_that_exist() -> None:
    """Every file that CONTRIBUTING.md names on the way of a photograph, a box and a correction is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    tour = text[text.index("## The way of a photograph") : text.index("## How we work")]
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", tour)
    assert len(named) > 30
    rooms = [ROOT / "src" / "spica", ROOT / "src" / "spica" / "detectors"]
    assert [name for name in named if not any((room / name).is_file() for room in rooms)] == []
