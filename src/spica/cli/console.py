"""What the commands share: output, logs, settings, a connection to Label Studio."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape

from spica.errors import UsageError
from spica.settings import Settings, variable_set

if TYPE_CHECKING:
    from spica.labelstudio.client import LabelStudioClient
    from spica.models.version import ModelIdentity

out = Console(highlight=False, soft_wrap=True)
"""Results."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Failures; notes and progress too, unless ``-q`` says otherwise."""

_level = logging.INFO


def set_verbosity(*, verbose: bool = False, quiet: bool = False) -> None:
    """How much is said besides results and failures, by ``-v`` and ``-q``."""
    global _level
    _level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    if verbose:
        log_to_console()


def is_quiet() -> bool:
    """Whether notes and progress are left out."""
    return _level > logging.INFO


def note(text: str) -> None:
    """Say what stops nothing but should be known."""
    if not is_quiet():
        err.print(f"[yellow]Note:[/yellow] {escape(text)}")


def count(number: int, noun: str) -> str:
    """``1 box``, ``2 boxes``, ``3 predictions``."""
    plural = f"{noun}es" if noun.endswith(("x", "s", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def confirm(question: str, *, yes: bool, refusal: str) -> None:
    """Ask before something is deleted, unless ``--yes`` has answered.

    Raises:
        UsageError: nobody is there to be asked.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            refusal,
            expected="a terminal to ask on, or --yes",
            hint="see what would be deleted with --dry-run, then run it again with --yes",
        )
    if not typer.confirm(question, err=True):
        err.print("Nothing was deleted.")
        raise typer.Exit(1)


def settings_with(**options: Any) -> Settings:
    """The settings with the options of the command line, which win over the environment; None is no option."""
    return Settings(**{name: value for name, value in options.items() if value is not None})


def read_text(path: Path, option: str) -> str:
    """The text of a file that an option names."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the file can't be read",
            where=f"{option} {path}",
            expected="a text file in UTF-8",
            got=getattr(error, "strerror", None) or str(error),
        ) from None


def identify(weights: Path, settings: Settings) -> ModelIdentity:
    """What a weights file is, without loading it."""
    from spica.models import store

    return store.identify(
        weights,
        score_floor=settings.score_floor,
        max_detections=settings.max_detections,
        norm_eps=settings.norm_eps,
        architecture=settings.architecture,
        data_dir=settings.data_dir,
    )


def label_studio(url: str | None, token: str | None, data_dir: Path | None, **others: Any) -> Settings:
    """The settings; where the data folder holds the Label Studio of `spica up`, with its address, token and folders.

    Raises:
        UsageError: there is no such data folder.
    """
    from spica.labelstudio.data_folder import RunningState, folder_at, folder_in, load_or_create

    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(
            "there is no such data folder",
            where=f"--data-dir {data_dir}",
            expected="a folder that `spica up` or `spica serve` keeps its data in",
            hint="give the folder that the frame of `spica up` names under Data",
        )
    settings = settings_with(label_studio_url=url, label_studio_api_key=token, data_dir=data_dir, **others)
    owner = data_dir
    if owner is None and variable_set("data_dir") and "label_studio_url" not in settings.model_fields_set:
        owner = settings.data_dir
    folder = folder_in(owner) if owner is not None else None
    values: dict[str, Any] = {}
    if folder is not None and (state := RunningState.read(folder)) is not None:
        values["label_studio_url"] = url or state.url
    folder = folder or folder_at(settings.label_studio_url)
    if folder is not None:
        values["label_studio_data_dir"] = folder
        if (state := RunningState.read(folder)) is not None:
            values["local_files_document_root"] = Path(state.document_root)
        if settings.label_studio_api_key is None:
            values["label_studio_api_key"] = SecretStr(load_or_create(folder).token)
    return settings.model_copy(update=values)


@contextmanager
def client_for(settings: Settings) -> Iterator[LabelStudioClient]:
    """A connection to Label Studio, closed afterwards."""
    from spica.labelstudio.client import LabelStudioClient

    if settings.label_studio_api_key is None:
        searched = "data_dir" in settings.model_fields_set
        raise UsageError(
            "the access token of Label Studio is missing",
            where=settings.label_studio_url,
            expected="--token, LABEL_STUDIO_API_KEY, or --data-dir of a `spica up`",
            got=f"a data folder without a Label Studio of `spica up`: {settings.data_dir}" if searched else None,
            hint="copy it from Label Studio's page Account & Settings > Personal Access Token",
        )
    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value()) as client:
        yield client


def model_server_of(settings: Settings, model_url: str | None) -> tuple[str, str | None]:
    """Address and ``user:password`` of the model server."""
    secret = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
    return model_url or f"http://127.0.0.1:{settings.model_port}", secret


def log_to_console() -> None:
    """What the server does, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    _log_to(handler)


def log_to_file(path: Path) -> None:
    """The same in a file that does not grow without bound; with ``-v`` on standard error too."""
    from logging.handlers import RotatingFileHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=5 * 2**20, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    shown = logging.getLogger().handlers if _level == logging.DEBUG else []
    _log_to(handler, *shown, level=min(_level, logging.INFO))


def _log_to(*handlers: logging.Handler, level: int | None = None) -> None:
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)
    for name in ("spica", "uvicorn.error"):
        logging.getLogger(name).setLevel(_level if level is None else level)
