"""Ports of this machine."""

from __future__ import annotations

import socket
import sys

from spica.errors import LaunchError


def require_free(host: str, port: int) -> None:
    """Nothing, if a server may listen on this port now.

    Raises:
        LaunchError: another program has it, or it needs more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform == "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:  # as Label Studio does: a port whose last connections are still fading is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise taken_port(f"{host}:{port}") from error


def taken_port(where: str) -> LaunchError:
    """The error for a port that can't be had."""
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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
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


def reachable(host: str) -> str:
    """How this machine itself reaches a server that listens on ``host``."""
    if host == "0.0.0.0":
        return "127.0.0.1"
    if host in {"::", "[::]"}:
        return "[::1]"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
