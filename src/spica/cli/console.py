"""What the commands share: output, logs, settings, a connection to Label Studio."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from spica.errors import UsageError
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.labelstudio.client import LabelStudioClient
    from spica.models.version import ModelIdentity

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def settings_with(**given: Any) -> Settings:
    """The settings with what the command line says; the command line wins over the environment."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


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
    """The settings, with address and token of the Label Studio that `spica up` started, where none are given."""
    from spica.labelstudio.known import own_folder, running_state, stored_token

    if data_dir is not None:
        others["label_studio_data_dir"] = own_folder(data_dir)
        state = running_state(data_dir)
        if state is not None:
            url = url or state.url
            others["local_files_document_root"] = Path(state.document_root)
    settings = settings_with(label_studio_url=url, label_studio_api_key=token, **others)
    if settings.label_studio_api_key is not None:
        return settings
    stored = stored_token(settings.label_studio_url, data_dir)
    return settings if stored is None else settings.model_copy(update={"label_studio_api_key": stored})


@contextmanager
def client_for(settings: Settings) -> Iterator[LabelStudioClient]:
    """A connection to Label Studio, closed afterwards."""
    from spica.labelstudio.client import LabelStudioClient

    if settings.label_studio_api_key is None:
        raise UsageError(
            "the access token of Label Studio is missing",
            where=settings.label_studio_url,
            expected="--token, LABEL_STUDIO_API_KEY, or --data-dir of a `spica up`",
            hint="copy it from Label Studio's page Account & Settings > Personal Access Token",
        )
    with LabelStudioClient(settings.label_studio_url, settings.label_studio_api_key.get_secret_value()) as client:
        yield client


def log_to_console() -> None:
    """What the server does, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    _log_to(handler)


def log_to_file(path: Path) -> None:
    """The same in a file that does not grow without bound."""
    from logging.handlers import RotatingFileHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=5 * 2**20, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    _log_to(handler)


def _log_to(handler: logging.Handler) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("spica", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)


def terminate_like_ctrl_c() -> None:
    """Being asked to end by the system stops everything in order, as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # SIGINT itself too: what a script starts in the background begins with it ignored.
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), interrupt)
