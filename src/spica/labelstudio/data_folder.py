"""Label Studio's data folder: its account, which Label Studio runs in it, and which folder belongs to which address."""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import platformdirs

from spica.errors import LaunchError, StorageError
from spica.files import write_text
from spica.http import same_url

LABEL_STUDIO_FOLDER = "label-studio"
"""Label Studio's own folder inside a data folder of Spica's."""
ACCOUNT_NAME = "credentials.json"
DATABASE_NAME = "label_studio.sqlite3"
STATE_NAME = "label-studio.json"
LOCK_NAME = "label-studio.lock"
PRIVATE = 0o600

# Label Studio's login form takes only what Django calls an e-mail address: a domain with a dot is safe everywhere.
_USER, _DOMAIN = "spica", "localhost.localdomain"
_REMEMBERED = 50


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account: ``email`` and ``password`` for the login page, ``token`` for the interface."""

    email: str
    password: str = field(repr=False)
    token: str = field(repr=False)

    def save(self, data_dir: Path) -> None:
        """Write the account file, readable by its owner only (mode 0600; on Windows the folder's own rights).

        Raises:
            StorageError: the folder can't be written.
        """
        write_text(data_dir / ACCOUNT_NAME, json.dumps(asdict(self), indent=2) + "\n", PRIVATE)


def load_or_create(data_dir: Path) -> Credentials:
    """The account of a data folder, made up at random the first time.

    When the folder has a database but no account file (a Label Studio set up by hand, or the file was deleted), the
    account gets a name of its own, since nobody knows the password of one that exists.

    Raises:
        LaunchError: the file is damaged, or can't be read.
        StorageError: it can't be written.
    """
    path = data_dir / ACCOUNT_NAME
    try:
        body = json.loads(path.read_text("utf-8"))
        return Credentials(email=str(body["email"]), password=str(body["password"]), token=str(body["token"]))
    except FileNotFoundError:
        name = f"{_USER}-{secrets.token_hex(3)}" if (data_dir / DATABASE_NAME).exists() else _USER
        created = Credentials(
            email=f"{name}@{_DOMAIN}",
            password=secrets.token_urlsafe(15),  # 20 characters, to be typed into the login page
            token=secrets.token_hex(20),  # 40 characters, all that Label Studio's column holds
        )
        created.save(data_dir)
        return created
    except OSError as error:
        raise LaunchError(
            "the account of Label Studio can't be read",
            where=str(path),
            got=str(error),
            hint="run as the user who owns the folder, or give another --data-dir",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            "the account file of Label Studio is damaged",
            where=str(path),
            expected="JSON with email, password and token",
            hint="delete it: a new account is added to the same Label Studio, and nothing else changes",
        ) from error


@dataclass(frozen=True, slots=True)
class RunningState:
    """What the state file says about a running Label Studio. It may be stale: ask the server itself.

    Attributes:
        pid: of the server's process.
        url: where it answers.
        document_root: that the addresses of local files are relative to.
        served_root: what it was given as its document root, if that is another one, with links; else "".
        started: ISO 8601, UTC.
    """

    pid: int
    port: int
    url: str
    document_root: str
    served_root: str = ""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, data_dir: Path) -> RunningState | None:
        """From a data folder; None when there is no state file or it can't be understood."""
        try:
            body = json.loads((data_dir / STATE_NAME).read_text("utf-8"))
            return cls(
                pid=int(body["pid"]),
                port=int(body["port"]),
                url=str(body["url"]),
                document_root=str(body["document_root"]),
                served_root=str(body.get("served_root", "")),
                started=str(body["started"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, data_dir: Path) -> None:
        """Into a data folder."""
        write_text(data_dir / STATE_NAME, json.dumps(asdict(self), indent=2) + "\n", PRIVATE)


# Which folder belongs to which address, so that commands find the token of a Label Studio that Spica started: a
# convenience that may be deleted; tokens themselves stay in their data folders.


def remember(url: str, folder: Path) -> None:
    """Note that the Label Studio at ``url`` keeps its data in ``folder``; not being able to is no failure."""
    known = {other: kept for other, kept in _known().items() if not same_url(other, url)}
    latest = dict([*known.items(), (url, str(folder))][-_REMEMBERED:])
    with contextlib.suppress(StorageError):
        write_text(_register(), json.dumps(latest, ensure_ascii=False, indent=2) + "\n", PRIVATE)


def folder_at(url: str) -> Path | None:
    """Label Studio's folder of the one at ``url``, if ``spica up`` has started it on this machine."""
    kept = next((Path(kept) for known, kept in _known().items() if same_url(known, url)), None)
    return kept if kept is not None and (kept / ACCOUNT_NAME).exists() else None


def folder_in(data_dir: Path) -> Path | None:
    """Label Studio's folder in a data folder of ``spica up``, or ``data_dir`` itself if it is one; None in others."""
    folders = (data_dir / LABEL_STUDIO_FOLDER, data_dir)
    return next((folder for folder in folders if (folder / ACCOUNT_NAME).exists()), None)


def _register() -> Path:
    return Path(platformdirs.user_data_dir("spica", appauthor=False)) / "label-studios.json"


def _known() -> dict[str, str]:
    try:
        value = json.loads(_register().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(url): str(folder) for url, folder in value.items()} if isinstance(value, dict) else {}
