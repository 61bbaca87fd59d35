"""Starts Label Studio, waits until it is ready, and stops it: the one place that does."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import ipaddress
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from spica.errors import AuthenticationError, LabelStudioError, LaunchError
from spica.files import storage_error
from spica.http import is_local, reachable
from spica.labelstudio.auth import redacted
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.data_folder import (
    ACCOUNT_NAME,
    DATABASE_NAME,
    LOCK_NAME,
    STATE_NAME,
    Credentials,
    RunningState,
    load_or_create,
)
from spica.locks import Lock

LOG_NAME = "label-studio.log"
LARGE_PROJECT_TASKS = 2000
"""From this many tasks on, a project counts as large for :func:`large_project_switches`."""

_FIRST_START_STEPS = 396
"""Rows in django_migrations after a first start of 1.23.2; only for showing how far it is."""
_MAX_LOG_BYTES = 16 * 2**20
_POLL_S = 0.2
_PROBE_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 10.0
_TAIL_LINES, _TAIL_BYTES = 15, 20_000
Progress = Callable[[str], None]

_CHILD = """
import importlib, os, sys, threading

def end_with_parent():
    # os.read and not sys.stdin: a thread inside a buffered read makes the interpreter's own end fail
    while os.read(0, 4096):
        pass
    os._exit(0)  # SQLite survives that; waiting for open requests would keep a forgotten server alive

threading.Thread(target=end_with_parent, daemon=True).start()
sys.exit(importlib.import_module("label_studio.server").main())
"""
"""Label Studio's own command line, ended when its standard input closes, which happens however the parent ends."""


class LabelStudioProcess:
    """A Label Studio that answers; close it, or use it in a ``with`` block.

    Attributes:
        url: where it answers, without a slash at the end.
        port: of it.
        pid: of its process.
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
        started: tuple[ChildProcess, Lock] | None = None,
    ) -> None:
        self.url = state.url
        self.port = state.port
        self.pid = state.pid
        self.credentials = credentials
        self.data_dir = data_dir
        self.document_root = Path(state.document_root)
        self.served_root = Path(state.served_root or state.document_root)
        self.log_file = log_file
        self.adopted = started is None
        self._started = started
        if started is not None:
            atexit.register(self.close)

    @property
    def is_running(self) -> bool:
        """Whether the process that was started still lives; an adopted one is asked."""
        if self._started is not None:
            return self._started[0].poll() is None
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
        if self._started is None:
            return
        (process, lock), self._started = self._started, None
        atexit.unregister(self.close)
        try:
            process.stop()
        finally:
            with contextlib.suppress(OSError):
                (self.data_dir / STATE_NAME).unlink(missing_ok=True)
            lock.release()

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
            on_progress: called with what it is doing, each time that changes.
            extra_env: further switches for its environment.

        Raises:
            LaunchError: it is not installed, the port is taken, or it does not become ready. Nothing is left running.
            StorageError: the folder can't be used.
        """
        say = on_progress or (lambda text: None)
        folder = data_dir.absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) from error
        log_path = log_file or folder / LOG_NAME
        deadline = time.monotonic() + timeout_s
        lock = Lock(folder / LOCK_NAME)
        try:
            adopted = _wait_for_folder(folder, lock, log_path, deadline, say)
            if adopted is not None:
                return adopted
            has_account = (folder / ACCOUNT_NAME).exists()
            credentials = load_or_create(folder)
            chosen = port or free_port(host)
            root = document_root.absolute()
            state = RunningState(
                pid=0,
                port=chosen,
                url=f"http://{reachable(host)}:{chosen}",
                document_root=str(root),
                served_root="" if served_root is None else str(served_root),
            )
            if has_account and port != 0 and _answers(state.url, credentials):  # started by hand in this very folder
                lock.release()
                return cls(state, credentials, folder, log_path)
            _require_installed()
            _require_free(host, chosen)
            environment = child_environment(
                os.environ,
                data_dir=folder,
                document_root=served_root or root,
                credentials=credentials,
                host=host,
                backend_host=backend_host,
                extra=extra_env or {},
            )
            process = ChildProcess(_command(host, chosen), environment, folder, log_path)
            try:
                _wait_until_ready(process, state.url, folder / DATABASE_NAME, credentials, deadline, timeout_s, say)
                credentials = _with_working_token(state.url, credentials, folder)
                state = replace(state, pid=process.pid)
                state.write(folder)
                return cls(state, credentials, folder, log_path, (process, lock))
            except BaseException:
                process.stop()
                raise
        except BaseException:
            lock.release()
            raise


class ChildProcess:
    """A process with all its own that never outlives us, and the log that its output is appended to.

    A log that has grown long is put aside first.

    Raises:
        StorageError: the log can't be written.
        LaunchError: the program can't be started.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], cwd: Path, log_path: Path) -> None:
        self.log_path = log_path
        with contextlib.suppress(OSError):  # no log yet; and one that can't be moved can still be appended to
            if log_path.stat().st_size > _MAX_LOG_BYTES:
                log_path.replace(log_path.with_name(log_path.name + ".1"))
        try:
            log = log_path.open("ab")
        except OSError as error:
            raise storage_error(error, log_path) from error
        with log:  # the child has a handle of its own
            self._log_start = log.seek(0, os.SEEK_END)
            try:
                # A group of its own: Ctrl-C in the terminal then reaches us alone, and we stop it in order.
                self._process = subprocess.Popen(  # noqa: S603 - our own command line, no shell
                    command,
                    env=environment,
                    cwd=cwd,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=sys.platform != "win32",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            except OSError as error:
                raise LaunchError("Label Studio can't be started", where=command[0], got=str(error)) from error
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end, wait, then kill it and all that it started."""
        try:
            if self._process.poll() is None:
                self._signal(gently=True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_TIMEOUT_S)
        finally:  # also when a second Ctrl-C cuts the waiting short
            self._signal(gently=False)
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()

    def _signal(self, *, gently: bool) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
            if sys.platform != "win32":
                os.killpg(self.pid, signal.SIGTERM if gently else signal.SIGKILL)
            elif gently:
                self._process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                self._process.kill()

    def tail(self, credentials: Credentials) -> str:
        """The last lines that it wrote since it was started, without secrets."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(self._log_start, self.log_path.stat().st_size - _TAIL_BYTES))
                text = log.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        text = redacted(text, credentials.password, credentials.token)
        return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])


def _command(host: str, port: int) -> list[str]:
    # With -P neither the working folder nor Spica's own can shadow one of its modules.
    # --debug switches one thing off: the habit of silently moving to the next port when this one is taken.
    listened = f"[{host}]" if ":" in host and not host.startswith("[") else host
    label_studio = ["start", "--no-browser", "--debug", "--internal-host", listened, "--port", str(port)]
    return [sys.executable, "-P", "-c", _CHILD, *label_studio]


def _wait_for_folder(
    folder: Path, lock: Lock, log_path: Path, deadline: float, say: Progress
) -> LabelStudioProcess | None:
    """The Label Studio that runs in the folder, or None with the lock held by us."""
    waiting = False
    while True:
        ours = lock.acquire()
        state = RunningState.read(folder)
        if state is not None:
            credentials = load_or_create(folder)
            if _answers(state.url, credentials):
                lock.release()
                return LabelStudioProcess(state, credentials, folder, log_path)
        if ours:
            return None
        if time.monotonic() > deadline:
            raise LaunchError(
                "another program is starting Label Studio in this folder and does not get ready",
                where=str(folder),
                hint="end the other `spica up`, or give another --data-dir",
            )
        if not waiting:
            say("another program is starting Label Studio in this folder; waiting for it")
            waiting = True
        time.sleep(_POLL_S)


def _wait_until_ready(
    process: ChildProcess,
    url: str,
    database: Path,
    credentials: Credentials,
    deadline: float,
    timeout_s: float,
    say: Progress,
) -> None:
    first = not database.exists()
    last = "preparing its database for the first time (about half a minute)" if first else "starting Label Studio"
    say(last)
    with httpx.Client(trust_env=False, timeout=_PROBE_TIMEOUT_S) as http:
        while True:
            status = process.poll()
            if status is not None:
                raise _ended_early(process.tail(credentials), process.log_path, status, url)
            with contextlib.suppress(httpx.TransportError):
                if http.get(f"{url}/health").is_success:
                    return
            if time.monotonic() > deadline:
                raise LaunchError(
                    "Label Studio did not get ready in time",
                    where=url,
                    expected=f"an answer within {timeout_s:.0f} s",
                    got=f"its last lines:\n{process.tail(credentials)}",
                    hint="try again: what it has prepared is kept; a slow disk or a busy machine may need a minute",
                )
            if first and (done := _migrations_done(database)):
                step = f"preparing its database: {min(10, 10 * done // _FIRST_START_STEPS) * 10} %"
                if step != last:
                    say(last := step)
            time.sleep(_POLL_S)


def _ended_early(tail: str, log_path: Path, status: int, url: str) -> LaunchError:
    if "port is already in use" in tail:
        return _taken_port(url)
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
        where=str(log_path),
        got=f"exit status {status}, its last lines:\n{tail}",
        hint=hint,
    )


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
    renewed = replace(credentials, token=personal_token(url, credentials))
    if not _answers(url, renewed):
        raise LaunchError(
            "Label Studio's account can't be used",
            where=url,
            got=f"the token of {credentials.email} is refused",
            hint="switch personal access tokens on (Organization > API Tokens Settings), or give another --data-dir",
        )
    renewed.save(folder)
    return renewed


def personal_token(url: str, credentials: Credentials) -> str:
    """A new personal access token, by logging in as a person would.

    Raises:
        LaunchError: the login is refused, or the account has such a token already.
    """
    hint = "delete credentials.json in the data folder: a new account is added, nothing else changes"
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30.0) as http:
            http.get("/user/login/").raise_for_status()
            form = {
                "email": credentials.email,
                "password": credentials.password,
                "csrfmiddlewaretoken": http.cookies.get("csrftoken", ""),
            }
            answer = http.post("/user/login/", data=form, headers={"Referer": f"{url}/user/login/"})
            if not answer.is_redirect:  # a wrong password shows the form again
                got = f"{answer.status_code} for {credentials.email}"
                raise LaunchError("Label Studio refuses the login of its account", where=url, got=got, hint=hint)
            return str(http.post("/api/token/").raise_for_status().json()["token"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        got = str(error) if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
        raise LaunchError("Label Studio gives no token to its account", where=url, got=got, hint=hint) from error


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
            "Label Studio is not installed", where=sys.executable, hint='pip install "spica[label-studio]"'
        )


# Ports


def _probe(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def _require_free(host: str, port: int) -> None:
    """Raise if no server may listen on this port now."""
    with _probe(host) as probe:
        if sys.platform == "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # as Label Studio does: a port whose last connections are still fading is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise _taken_port(f"{host}:{port}") from error


def _taken_port(where: str) -> LaunchError:
    return LaunchError(
        "the port of Label Studio is taken or may not be used",
        where=where,
        hint="give another one with --label-studio-port (or SPICA_LABEL_STUDIO_PORT), or end the program that has it",
    )


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment.

    Raises:
        LaunchError: ``host`` is no address of this machine.
    """
    with _probe(host) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError as error:
            raise LaunchError(
                "no address of this machine",
                where=host,
                got=str(error),
                hint="give one of its addresses with --host, such as 127.0.0.1",
            ) from error
        return int(probe.getsockname()[1])


# The environment: what passes through, and the switches it is given

# The system's own, and the way out to the network for images and storages elsewhere.
_PASSED_TEXT = """
    PATH HOME USER LOGNAME SHELL TERM TZ LANG LANGUAGE TMPDIR TEMP TMP XDG_DATA_HOME XDG_CACHE_HOME XDG_CONFIG_HOME
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT USERPROFILE HOMEDRIVE HOMEPATH APPDATA LOCALAPPDATA PROGRAMDATA
    PROGRAMFILES COMMONPROGRAMFILES NUMBER_OF_PROCESSORS PROCESSOR_ARCHITECTURE VIRTUAL_ENV CONDA_PREFIX
    LD_LIBRARY_PATH DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH PYTHONPATH PYTHONHOME
    HTTP_PROXY HTTPS_PROXY ALL_PROXY SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
"""
_PASSED = frozenset(_PASSED_TEXT.split())
_PASSED_PREFIXES = ("LC_", "AWS_", "AZURE_", "GOOGLE_")  # cloud storages find their credentials there
_KEPT_EMPTY = frozenset({"LABEL_STUDIO_SENTRY_DSN", "LABEL_STUDIO_FRONTEND_SENTRY_DSN"})  # empty is off, unset is on
_MEMORY_EFFICIENT_IMPORT = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
# What Label Studio 1.23.2 bans by default (core/utils/io.py, validate_ip); ranges inside others left out.
_BANNED_TEXT = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    ::/128 ::1/128 ::ffff:0:0/96 ::ffff:0:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/32 2001:20::/28
    2001:db8::/32 2002::/16 fc00::/7 fe80::/10 ff00::/8
"""
_BANNED_NETWORKS = tuple(ipaddress.ip_network(network) for network in _BANNED_TEXT.split())


def child_environment(
    base: Mapping[str, str],
    *,
    data_dir: Path,
    document_root: Path,
    credentials: Credentials,
    host: str,
    backend_host: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of the child.

    Label Studio reads some 150 settings under three names each, the last without any prefix: a ``PORT``, ``DEBUG``,
    ``HOST``, ``CI`` or ``DJANGO_DB`` meant for something else breaks it. So only what is known to be harmless is
    passed on, and all that matters is set by its full name, which wins.

    ``base`` is the environment of this process; ``extra`` is set last, and an empty text in it removes a switch. The
    rest as for :meth:`LabelStudioProcess.start`.
    """
    passed = {
        name: value
        for name, value in base.items()
        if name.upper() in _PASSED or name.upper().startswith(_PASSED_PREFIXES)
    }
    no_proxy = base.get("NO_PROXY") or base.get("no_proxy") or ""
    own = {
        "NO_PROXY": ",".join(part for part in (no_proxy, "127.0.0.1", "localhost", "::1", backend_host) if part),
        "PYTHONUNBUFFERED": "1",  # the log must show what happened before a sudden end
        "PYTHONUTF8": "1",  # names in Japanese, on a Windows of any language
        "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir),
        "LABEL_STUDIO_DJANGO_DB": "sqlite",
        "LABEL_STUDIO_USERNAME": credentials.email,
        "LABEL_STUDIO_PASSWORD": credentials.password,
        "LABEL_STUDIO_USER_TOKEN": credentials.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",  # read once, when the organization is created
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(document_root),
        **unblocking_switches(backend_host),
        # A first prediction may wait for the model to load; see the timeouts of ml/api_connector.py.
        "LABEL_STUDIO_ML_TIMEOUT_HEALTH": "5",
        "LABEL_STUDIO_ML_TIMEOUT_SETUP": "10",
        "LABEL_STUDIO_ML_TIMEOUT_PREDICT": "600",
        # Nothing leaves the machine unasked.
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        # Other people on this machine, and pages in this browser, have no business here.
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_CORS_ALLOW_ALL_ORIGINS": "false",
        "LABEL_STUDIO_LOG_LEVEL": "WARNING",
    }
    if is_local(host):  # by name too, against pages that rebind their own name to 127.0.0.1
        own["LABEL_STUDIO_ALLOWED_HOSTS"] = "127.0.0.1,localhost,[::1]"
    return {name: value for name, value in {**passed, **own, **extra}.items() if value or name in _KEPT_EMPTY}


def large_project_switches(tasks: int) -> dict[str, str]:
    """What keeps the cost of storing a prediction the same in a project of this many tasks.

    Each bulk import of predictions counts all predicted tasks of the project anew, so that storing N predictions costs
    N times N; with this flag of Label Studio 1.23.2 (``data_import/api.py``, ``ImportPredictionsAPI``) only those of
    the import are counted. It is left off where it does not matter: with it Label Studio no longer checks predictions
    against the labelling configuration, and its counters stay behind after a deletion.
    """
    return {_MEMORY_EFFICIENT_IMPORT: "true"} if tasks >= LARGE_PROJECT_TASKS else {}


def unblocking_switches(backend_host: str) -> dict[str, str]:
    """What lets Label Studio 1.23.1+ call a model on this machine, and its webhooks too, and nothing else.

    ``ML_BLOCK_LOCAL_IP=false`` needs ``SSRF_PROTECTION_ENABLED=false`` beside it (otherwise connecting answers 403
    with the model half connected), and the two open every address for models, webhooks, imports and storages.
    Instead the protection stays on with its list of banned networks from us: the default one without those that
    the model server is in. So this machine's loopback is open, and private networks and the cloud's metadata
    address (169.254.169.254) stay closed.
    """
    names = {"127.0.0.1", "::1"}  # loopback is always open, so that a server of this machine can be connected by hand
    with contextlib.suppress(OSError):  # an unknown name opens nothing
        names.update(str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(backend_host.strip("[]"), None))
    reached = [ipaddress.ip_address(name) for name in names]
    banned = [str(network) for network in _BANNED_NETWORKS if not any(address in network for address in reached)]
    return {
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": ",".join(banned),
    }
