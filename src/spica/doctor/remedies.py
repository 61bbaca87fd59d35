"""Lines to paste: environment variables and commands, as each shell wants them."""

from __future__ import annotations

import shlex
import sys

LABEL_STUDIO_START = "label-studio start --internal-host 127.0.0.1"
"""Bound to this machine: with local addresses allowed, others should not be able to log in."""

_METADATA_NETWORK = "169.254.0.0/16"


def environment(**variables: str) -> str:
    """Lines that set environment variables, one a shell, this system's own shells first."""
    bash = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    power_shell = "; ".join("$env:{}='{}'".format(name, value.replace("'", "''")) for name, value in variables.items())
    cmd = " & ".join(f'set "{name}={value}"' for name, value in variables.items())
    unix = [f"  bash, zsh:   export {bash}"]
    windows = [f"  PowerShell:  {power_shell}", f"  cmd:         {cmd}"]
    return "\n".join([*windows, *unix] if sys.platform == "win32" else [*unix, *windows])


def unblock_local_addresses() -> str:
    """How to let a Label Studio that was started by hand call a model server on this machine.

    One switch serves models and webhooks alike. It opens all private networks, so the address at which clouds keep
    their machines' credentials is closed again.
    """
    variables = {
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": _METADATA_NETWORK,
    }
    return (
        "since 1.23.1 Label Studio refuses private addresses unless told otherwise. Stop it, set in its terminal\n"
        f"{environment(**variables)}\n"
        f"and start it again: {LABEL_STUDIO_START}\n"
        "(`spica up` starts one that is set up so)"
    )


def serve_local_files(root: str) -> str:
    """How to let a Label Studio that was started by hand serve images from disk."""
    variables = {
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": root,
    }
    return (
        f"stop Label Studio, set in its terminal\n{environment(**variables)}\nand start it again: {LABEL_STUDIO_START}"
    )


def connect(project: int, model_url: str, *, extra: str = "") -> str:
    """The command that connects the model server, or brings its connection up to date."""
    return f"spica connect --project {project} --model-url {model_url}{extra}"
