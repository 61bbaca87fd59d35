"""Starts Label Studio, waits until it is ready, and stops it: the one place that does."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from spica.errors import AuthenticationError, LabelStudioError, LaunchError
from spica.labelstudio import child
from spica.labelstudio.child_process import ChildProcess
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.credentials import DATABASE_NAME, Credentials, load_or_create, save
from spica.labelstudio.credentials import FILE_NAME as ACCOUNT_NAME
from spica.labelstudio.instance import LOCK_NAME, STATE_NAME, RunningState
from spica.labelstudio.launch_env import child_environment
from spica.labelstudio.login import personal_token
from spica.labelstudio.ports import free_port, reachable, require_free, taken_port
from spica.locks import Lock

LOG_NAME = "label-studio.log"
_FIRST_START_STEPS = 396
"""Rows in django_migrations after a first start of 1.23.2; only for showing how far it is."""
_MAX_LOG_BYTES = 16 * 2**20
_POLL_S = 0.2
_PROBE_TIMEOUT_S = 5.0
Progress = Callable[[str], None]


class LabelStudioProcess:
    """A Label Studio that answers; close it, or use it in a ``with`` block.

    Attributes:
        url: where it answers, without a slash at the end.
        port: of it.
        credentials: of its account.
        adopted: whether it ran already; such a one is left running when this is closed.
        data_dir: its data folder.
        document_root: that the addresses of local files are relative to.
        served_root: what it was given as its document root; a local storage lies below it.
        log_file: what it writes.
    """

    def __init__(
        self,
        state: RunningState,
        credentials: Credentials,
        data_dir: Path,
        log_file: Path,
        *,
        child_process: ChildProcess | None,
        lock: Lock | None,
    ) -> None:
        self.url = state.url
        self.port = state.port
        self.pid = state.pid
        self.credentials = credentials
        self.data_dir = data_dir
        self.document_root = Path(state.document_root)
        self.served_root = Path(state.served_root or state.document_root)
        self.log_file = log_file
        self._child = child_process
        self._lock = lock
        if child_process is not None:
            atexit.register(self.close)

    @property
    def adopted(self) -> bool:
        """Whether it ran already."""
        return self._lock is None

    @property
    def is_running(self) -> bool:
        """Whether the process that was started still lives; an adopted one is asked."""
        if self._child is not None:
            return self._child.poll() is None
        return self.adopted and _answers(self.url, self.credentials)

    def client(self) -> LabelStudioClient:
        """A new connection to it; the caller closes it."""
        return LabelStudioClient(self.url, self.credentials.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop it and all its processes, unless it was adopted; closing twice is fine."""
        process, self._child = self._child, None
        if process is None:
            return
        atexit.unregister(self.close)
        try:
            process.stop()
        finally:
            with contextlib.suppress(OSError):
                (self.data_dir / STATE_NAME).unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.release()

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        port: int,
        document_root: Path,
        served_root: Path | None = None,
        host: str = "127.0.0.1",
        backend_host: str = "127.0.0.1",
        log_file: Path | None = None,
        timeout_s: float = 300.0,
        on_progress: Progress | None = None,
        extra_env: Mapping[str, str] | None = None,
    ) -> LabelStudioProcess:
        """Start Label Studio in a data folder, or take the one that runs there already.

        Its first start prepares a database, which takes about half a minute.

        Args:
            data_dir: its folder, created when missing; everything it keeps is inside.
            port: to listen on; 0 takes a free one.
            document_root: the folder below which it serves local files; images are in folders strictly below it.
                One that runs already keeps its own, see the attribute.
            served_root: given to it instead, with links to what of ``document_root`` it may serve.
            host: to listen on; anything but this machine's own addresses opens it to others.
            backend_host: where the model server is, as Label Studio reaches it.
            log_file: where its output is appended; in the data folder by default.
            timeout_s: seconds until it must be ready.
            on_progress: told in words what it is doing, each time that changes.
            extra_env: further switches for its environment.

        Raises:
            LaunchError: it is not installed, the port is taken, the folder can't be used, or it does not become
                ready. Nothing is left running then.
        """
        tell = on_progress or (lambda text: None)
        folder = _prepared(data_dir)
        log_path = log_file or folder / LOG_NAME
        deadline = time.monotonic() + timeout_s
        lock = Lock(folder / LOCK_NAME)
        try:
            adopted = _wait_for_folder(folder, lock, log_path, deadline, tell)
            if adopted is not None:
                return adopted
            has_account = (folder / ACCOUNT_NAME).exists()
            credentials = load_or_create(folder)
            chosen = free_port(host) if port == 0 else port
            url = f"http://{reachable(host)}:{chosen}"
            root = document_root.absolute()
            state = RunningState.now(pid=0, port=chosen, url=url, document_root=root, served_root=served_root)
            if has_account and port != 0 and _answers(url, credentials):  # started by hand in this very folder
                lock.release()
                return cls(state, credentials, folder, log_path, child_process=None, lock=None)
            _require_installed()
            require_free(host, chosen)
            environment = child_environment(
                os.environ,
                data_dir=folder,
                document_root=served_root or root,
                credentials=credentials,
                host=host,
                backend_host=backend_host,
                extra=extra_env or {},
            )
            _turn_over(log_path)
            process = ChildProcess.start(_command(host, chosen), environment, folder, log_path)
            try:
                _wait_until_ready(process, url, folder / DATABASE_NAME, credentials, deadline, timeout_s, tell)
                credentials = _with_working_token(url, credentials, folder)
                state = replace(state, pid=process.pid)
                state.write(folder)
                return cls(state, credentials, folder, log_path, child_process=process, lock=lock)
            except BaseException:
                process.stop()
                raise
        except BaseException:
            lock.release()
            raise


def _command(host: str, port: int) -> list[str]:
    # By the file's path and with -P: neither the working folder nor Spica's own can shadow one of its modules.
    # --debug switches one thing off: the habit of silently moving to the next port when this one is taken.
    listened = f"[{host}]" if ":" in host and not host.startswith("[") else host
    label_studio = ["start", "--no-browser", "--debug", "--internal-host", listened, "--port", str(port)]
    return [sys.executable, "-P", str(Path(child.__file__).resolve()), *label_studio]


def _turn_over(log_path: Path) -> None:
    """Put a log that has grown long aside, in place of the one put aside before."""
    with contextlib.suppress(OSError):  # no log yet; and one that can't be moved can still be appended to
        if log_path.stat().st_size > _MAX_LOG_BYTES:
            log_path.replace(log_path.with_name(log_path.name + ".1"))


def _prepared(data_dir: Path) -> Path:
    folder = data_dir.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(
            "the data folder can't be made",
            where=str(folder),
            got=str(error),
            hint="give a folder of your own with --data-dir",
        ) from error
    return folder


def _wait_for_folder(
    folder: Path, lock: Lock, log_path: Path, deadline: float, tell: Progress
) -> LabelStudioProcess | None:
    """The Label Studio that runs in the folder, or None with the lock held by us."""
    told = False
    while True:
        ours = lock.acquire()
        state = RunningState.read(folder)
        if state is not None:
            credentials = load_or_create(folder)
            if _answers(state.url, credentials):
                lock.release()
                return LabelStudioProcess(state, credentials, folder, log_path, child_process=None, lock=None)
        if ours:
            return None
        if time.monotonic() > deadline:
            raise LaunchError(
                "another program is starting Label Studio in this folder and does not get ready",
                where=str(folder),
                hint="end the other `spica up`, or give another --data-dir",
            )
        if not told:
            tell("another program is starting Label Studio in this folder; waiting for it")
            told = True
        time.sleep(_POLL_S)


def _wait_until_ready(
    process: ChildProcess,
    url: str,
    database: Path,
    credentials: Credentials,
    deadline: float,
    timeout_s: float,
    tell: Progress,
) -> None:
    secrets = (credentials.password, credentials.token)
    first = not database.exists()
    last = "preparing its database for the first time (about half a minute)" if first else "starting Label Studio"
    tell(last)
    with httpx.Client(trust_env=False, timeout=_PROBE_TIMEOUT_S) as http:
        while True:
            status = process.poll()
            if status is not None:
                raise _ended_early(process, status, url, secrets)
            if _is_up(http, url):
                return
            if time.monotonic() > deadline:
                raise LaunchError(
                    "Label Studio did not get ready in time",
                    where=url,
                    expected=f"an answer within {timeout_s:.0f} s",
                    got=f"its last lines:\n{process.tail(secrets)}",
                    hint="try again: what it has prepared is kept; a slow disk or a busy machine may need a minute",
                )
            if first and (done := _migrations_done(database)):
                step = f"preparing its database: {min(10, 10 * done // _FIRST_START_STEPS) * 10} %"
                if step != last:
                    tell(last := step)
            time.sleep(_POLL_S)


def _ended_early(process: ChildProcess, status: int, url: str, secrets: tuple[str, ...]) -> LaunchError:
    tail = process.tail(secrets)
    if "port is already in use" in tail:
        return taken_port(url)
    hint = "the lines above say why; if they do not help, look into the whole log"
    if re.search(r"disk (is )?full|No space left|disk I/O error", tail):
        hint = "make room on the disk, or give a folder on another one with --data-dir"
    elif re.search(r"readonly database|Permission denied|unable to open database", tail):
        hint = "give a folder that you may write to with --data-dir"
    elif re.search(r"ModuleNotFoundError|ImportError", tail):
        hint = 'install it anew: pip install --force-reinstall "spica[label-studio]"'
    elif "malformed" in tail or "not a database" in tail:
        hint = "its database is damaged: put back a copy of the data folder, or give another --data-dir"
    return LaunchError(
        "Label Studio ended while starting",
        where=str(process.log_path),
        got=f"exit status {status}, its last lines:\n{tail}",
        hint=hint,
    )


def _is_up(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def _answers(url: str, credentials: Credentials) -> bool:
    """Whether a Label Studio answers at ``url`` that knows our account: a process number alone proves nothing."""
    try:
        with LabelStudioClient(url, credentials.token, timeout_s=_PROBE_TIMEOUT_S) as client:
            return client.whoami().email == credentials.email
    except (LabelStudioError, AuthenticationError):
        return False


def _with_working_token(url: str, credentials: Credentials, folder: Path) -> Credentials:
    """The credentials with a token that works.

    In a database that existed before, legacy tokens may be switched off: then the account, which we know the
    password of, gets a personal one, and the organization's setting stays as it is.
    """
    if _answers(url, credentials):
        return credentials
    token = personal_token(url, credentials)
    renewed = credentials.with_token(token)
    if not _answers(url, renewed):
        raise LaunchError(
            "Label Studio's account can't be used",
            where=url,
            got=f"the token of {credentials.email} is refused",
            hint="switch personal access tokens on (Organization > API Tokens Settings), or give another --data-dir",
        )
    save(folder, renewed)
    return renewed


def _migrations_done(database: Path) -> int:
    """How many steps of preparing the database are done; 0 while that can't be seen."""
    if not database.exists():
        return 0
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=0.1)) as connection:
            return int(connection.execute("SELECT count(*) FROM django_migrations").fetchone()[0])
    except sqlite3.Error:  # no table yet, or busy
        return 0


def _require_installed() -> None:
    if importlib.util.find_spec("label_studio") is None:
        raise LaunchError(
            "Label Studio is not installed",
            where=sys.executable,
            hint='pip install "spica[label-studio]"',
        )
