"""Run the model server: bind its port, serve in a thread or in the foreground."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Self

import uvicorn

from spica.errors import LaunchError, SpicaError, UsageError
from spica.http import is_local, reachable
from spica.server.app import create_app
from spica.server.jobs import Jobs
from spica.server.service import Service
from spica.settings import Settings

logger = logging.getLogger(__name__)


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
    """The model server, running in a thread of this process until closed, with the service and its engine.

    Attributes:
        port: that it is bound to, also where 0 was asked for.
        url: under which this machine reaches it.
        jobs: its bulk jobs.
    """

    def __init__(self, service: Service, settings: Settings, *, host: str, port: int) -> None:
        self._service = service
        self._socket = bind(host, port, option="--port")
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{'127.0.0.1' if host.strip('[]') == '::' else reachable(host)}:{self.port}"
        app = create_app(service, settings, host=host)
        self.jobs: Jobs = app.state.jobs
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        app.state.is_stopping = lambda: self._server.should_exit
        self._thread = threading.Thread(target=self.run, name="spica-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self) -> None:
        """Serve until :meth:`stop`, or Ctrl-C on the main thread."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Take no more requests; :meth:`run` returns."""
        self._server.should_exit = True

    def close(self) -> None:
        """Answer what is under way, let jobs store what is computed already, then stop. May be called again."""
        self._service.workers.close()
        self.stop()
        self._service.predictor.engine.close()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        self._socket.close()


def serve(service: Service, settings: Settings, *, host: str, port: int) -> None:
    """Serve in the foreground until Ctrl-C; the model begins to load once requests can be taken.

    Raises:
        SpicaError: the port can't be used, or the model could not be loaded.
    """
    server, engine = ModelServer(service, settings, host=host, port=port), service.predictor.engine
    failed: list[SpicaError] = []
    engine.start()

    def watch() -> None:
        try:
            engine.wait_ready()
        except SpicaError as error:
            failed.append(error)
            server.stop()

    threading.Thread(target=watch, name="spica-watch", daemon=True).start()
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn raises it again after it has stopped in order
        pass
    finally:
        server.close()
    if failed and engine.status.error is not None:
        raise failed[0]
