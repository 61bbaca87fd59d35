"""Write docs/reference.md from the commands and the settings themselves; a test keeps it true."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer
from pydantic import AliasChoices
from pydantic_core import PydanticUndefined

from spica.cli import app
from spica.settings import Settings

PATH = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
_COMPUTED = {"label_studio_data_dir": "Label Studio's own", "data_dir": "the user's data folder"}


def reference() -> str:
    """The whole page, Markdown."""
    parts = [
        "# Reference",
        "Written by `python scripts/write_reference.py` from the program itself.",
        "## Commands",
        *(_command(name, command) for name, command in _commands(typer.main.get_command(app), "spica")),
        "## Settings",
        "Options on the command line win over the environment. Names that Label Studio's own ecosystem uses are kept.",
        _settings(),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(name, command)]
    return [found for key, each in inner.items() for found in _commands(each, f"{name} {key}")]


def _command(name: str, command: Any) -> str:
    help_text = re.sub(r"\[/?bold\]", "**", command.help or "").strip()
    context = typer.Context(command, info_name=name)
    rows = ["| option | meaning | default |", "|---|---|---|"]
    for parameter in command.get_params(context):
        if "--help" in parameter.opts:
            continue
        names = ", ".join(f"`{each}`" for each in parameter.opts) if parameter.opts else ""
        if parameter.param_type_name == "argument":
            names = f"`{(parameter.name or '').upper()}`"
        text = str(getattr(parameter, "help", None) or "").replace("|", "\\|")
        rows.append(f"| {names} | {text} | {_default(parameter)} |")
    return "\n\n".join([f"### {name}", help_text, "\n".join(rows)])


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    if parameter.required:
        return "needed"
    return ""


def _settings() -> str:
    rows = ["| variable | meaning | default |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]
        default = _COMPUTED.get(name, "" if field.default in (PydanticUndefined, None) else str(field.default))
        rows.append(f"| {', '.join(f'`{each}`' for each in names)} | {field.description} | {default} |")
    return "\n".join(rows)


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(reference(), "utf-8")
    sys.stdout.write(f"{PATH}\n")
