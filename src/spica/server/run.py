"""Run the model server: bind its port, serve in a thread or in the foreground."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI

from spica.errors import LaunchError, SpicaError, UsageError
from spica.labelstudio.launch_env import is_local
from spica.labelstudio.ports import reachable
from spica.server.app import create_app
from spica.server.forward import Forwarder
from spica.server.jobs import Jobs
from spica.server.learning import Learning
from spica.server.security import Access
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)


def build_app(service: Service, settings: Settings, *, host: str) -> FastAPI:
    """The application around a service, for a server bound to ``host``."""
    jobs = Jobs(service, settings)
    return create_app(
        service,
        forwarder=Forwarder(settings.label_studio_url, backup_dir=settings.data_dir / "backups"),
        jobs=jobs,
        learning=Learning(service, jobs, settings),
        max_request_bytes=settings.max_request_bytes,
        max_tasks=settings.max_tasks,
        access=Access.of(settings, host),
    )


def refuse_exposed(host: str, *, expose: bool) -> None:
    """Raise unless ``host`` is this machine's own, or exposing was asked for.

    Raises:
        UsageError: others could reach the server and nobody said that they should.
    """
    if not is_local(host) and not expose:
        raise UsageError(
            "with this address, other machines could reach the server",
            where="--host",
            expected="127.0.0.1, or --expose beside it",
            got=host,
            hint="add --expose if that is meant; choose passwords and a firewall accordingly",
        )


def bind(host: str, port: int, *, option: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        LaunchError: the port is taken or not allowed, or there is no such address.
    """
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with contextlib.ExitStack() as stack:
            # Named as TCP, or asyncio would not switch Nagle's algorithm off: every answer would wait some 40 ms.
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: REUSEADDR would share the port with anybody
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":  # every address means the old ones too, on Windows as elsewhere
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, port))
            sock.listen(128)
            stack.pop_all()
            return sock
    except OSError as error:
        raise LaunchError(
            f"port {port} can't be used",
            where=host,
            got=error.strerror or str(error),
            hint=f"stop what uses it (another spica?), or choose another port with {option}",
        ) from None


def ensure_port_free(host: str, port: int, *, option: str) -> None:
    """Raise the error of :func:`bind` before anything else is started."""
    bind(host, port, option=option).close()


class ModelServer:
    """The model server, running in a thread of this process until closed.

    Args:
        service: closed with the server, its engine too.
        settings: limits and passwords.
        host: address to bind to.
        port: 0 for a free one.
    """

    def __init__(self, service: Service, settings: Settings, *, host: str, port: int) -> None:
        self._service = service
        self._socket = bind(host, port, option="--port")
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{'127.0.0.1' if host.strip('[]') == '::' else reachable(host)}:{self.port}"
        app = build_app(service, settings, host=host)
        self.jobs: Jobs = app.state.jobs
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on")
        self._server = uvicorn.Server(config)
        app.state.is_stopping = lambda: self._server.should_exit
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="spica-server", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer what is under way, let jobs store what is in hand, then stop. May be called twice."""
        self._service.workers.close()
        self._server.should_exit = True
        self._service.predictor.engine.close()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._socket.close()


def serve(service: Service, settings: Settings, *, host: str, port: int) -> None:
    """Serve in the foreground until Ctrl-C; the model begins to load once requests can be taken.

    Raises:
        SpicaError: the port can't be used, or the model could not be loaded.
    """
    sock = bind(host, port, option="--port")
    app = build_app(service, settings, host=host)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    app.state.is_stopping = lambda: server.should_exit
    failed: list[SpicaError] = []
    service.predictor.engine.start()

    def watch() -> None:
        try:
            service.predictor.engine.wait_ready()
        except SpicaError as error:
            failed.append(error)
            server.should_exit = True

    threading.Thread(target=watch, name="spica-watch", daemon=True).start()
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:  # uvicorn raises it again after it has stopped in order
        pass
    finally:
        service.predictor.engine.close()
        sock.close()
    if failed and service.predictor.engine.status.error is not None:
        raise failed[0]
