"""The account of a Label Studio that Spica starts, kept in its data folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spica.errors import LaunchError

FILE_NAME = "credentials.json"
DATABASE_NAME = "label_studio.sqlite3"
_USER = "spica"
_DOMAIN = "localhost.localdomain"
"""Label Studio's login form takes only what Django calls an e-mail address: ``user@localhost`` would do for the
database, a domain with a dot is safe everywhere."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account: ``email`` and ``password`` for the login page, ``token`` for the interface.

    Password and token don't show in its ``repr``.
    """

    email: str
    password: str
    token: str

    def __repr__(self) -> str:
        return f"Credentials(email={self.email!r}, password='***', token='***')"

    def with_token(self, token: str) -> Credentials:
        """The same account with another token."""
        return replace(self, token=token)


def load_or_create(data_dir: Path) -> Credentials:
    """The account of a data folder, made up at random the first time.

    When the folder has a database but no account file (a Label Studio set up by hand, or the file was deleted), the
    account gets a name of its own, since nobody knows the password of one that exists.

    Raises:
        LaunchError: the file is damaged, or can't be read or written.
    """
    path = data_dir / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        taken = (data_dir / DATABASE_NAME).exists()
        name = f"{_USER}-{secrets.token_hex(3)}" if taken else _USER
        created = Credentials(
            email=f"{name}@{_DOMAIN}",
            password=secrets.token_urlsafe(15),  # 20 characters, to be typed into the login page
            token=secrets.token_hex(20),  # 40 characters, all that Label Studio's column holds
        )
        save(data_dir, created)
        return created
    except OSError as error:
        raise LaunchError(
            "the account of Label Studio can't be read",
            where=str(path),
            got=str(error),
            hint="run as the user who owns the folder, or give another --data-dir",
        ) from error
    try:
        body = json.loads(text)
        return Credentials(email=str(body["email"]), password=str(body["password"]), token=str(body["token"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            "the account file of Label Studio is damaged",
            where=str(path),
            expected="JSON with email, password and token",
            hint="delete it: a new account is added to the same Label Studio, and nothing else changes",
        ) from error


def save(data_dir: Path, credentials: Credentials) -> None:
    """Write the account file atomically, readable by its owner only (mode 0600; on Windows the folder's own rights).

    Raises:
        LaunchError: the folder can't be written.
    """
    write_private(data_dir / FILE_NAME, json.dumps(asdict(credentials), indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a small text file in one step, mode 0600.

    Raises:
        LaunchError: the folder can't be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp creates with 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LaunchError(
            "the data folder can't be written",
            where=str(path.parent),
            got=str(error),
            hint="free space, or give a folder of your own with --data-dir",
        ) from error
