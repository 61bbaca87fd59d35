"""Which data folder belongs to which address: so that commands find the token of a Label Studio that Spica started.

A convenience that may be deleted; tokens themselves stay in their data folders.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import platformdirs
from pydantic import SecretStr

from spica.errors import LaunchError, UsageError
from spica.http import same_url
from spica.labelstudio.credentials import FILE_NAME, load_or_create, write_private
from spica.labelstudio.instance import RunningState

LABEL_STUDIO_FOLDER = "label-studio"
"""Label Studio's own folder inside a data folder of Spica's."""

_KEPT = 50


def _register() -> Path:
    return Path(platformdirs.user_data_dir("spica", appauthor=False)) / "label-studios.json"


def _known() -> dict[str, str]:
    try:
        value = json.loads(_register().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(url): str(folder) for url, folder in value.items()} if isinstance(value, dict) else {}


def remember(url: str, folder: Path) -> None:
    """Note that the Label Studio at ``url`` keeps its data in ``folder``; not being able to is no failure."""
    known = {other: kept for other, kept in _known().items() if not same_url(other, url)}
    known[url] = str(folder)
    latest = dict(list(known.items())[-_KEPT:])
    with contextlib.suppress(OSError, LaunchError):
        _register().parent.mkdir(parents=True, exist_ok=True)
        write_private(_register(), json.dumps(latest, ensure_ascii=False, indent=2) + "\n")


def stored_token(url: str, data_dir: Path | None) -> SecretStr | None:
    """The token of the Label Studio at ``url``, or None when none is known.

    Args:
        url: of Label Studio.
        data_dir: of ``spica up``; None looks among those that were started on this machine.

    Raises:
        UsageError: ``data_dir`` holds no Label Studio of Spica's.
    """
    if data_dir is not None:
        return SecretStr(load_or_create(own_folder(data_dir)).token)
    kept = next((kept for known, kept in _known().items() if same_url(known, url)), None)
    if kept is None or not (Path(kept) / FILE_NAME).exists():
        return None
    return SecretStr(load_or_create(Path(kept)).token)


def own_folder(data_dir: Path) -> Path:
    """Label Studio's folder in a data folder of ``spica up``, or ``data_dir`` itself if it is one.

    Raises:
        UsageError: it holds no Label Studio of Spica's.
    """
    for folder in (data_dir / LABEL_STUDIO_FOLDER, data_dir):
        if (folder / FILE_NAME).exists():
            return folder
    raise UsageError(
        "this folder holds no data of `spica up`",
        where=str(data_dir),
        expected=f"{LABEL_STUDIO_FOLDER}/{FILE_NAME} in it",
        hint="give the folder that the frame of `spica up` names under Data",
    )


def running_state(data_dir: Path) -> RunningState | None:
    """What is known of the Label Studio that runs on a data folder; None when it is stopped.

    Raises:
        UsageError: it holds no Label Studio of Spica's.
    """
    return RunningState.read(own_folder(data_dir))
