"""`spica serve`, `spica connect` and `spica doctor`."""

from __future__ import annotations

import contextlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.console import (
    client_for,
    err,
    identify,
    label_studio,
    log_to_console,
    out,
    settings_with,
    terminate_like_ctrl_c,
)
from spica.cli.options import (
    AllowedHosts,
    BasicAuth,
    ChosenPrecision,
    Eps,
    Expose,
    Host,
    LabelStudioDataDir,
    MaxDetections,
    Overlap,
    ProjectNumber,
    Threshold,
    Tile,
    Token,
    Url,
    Weights,
)
from spica.settings import Settings, help_for

if TYPE_CHECKING:
    from spica.models.version import ModelIdentity

logger = logging.getLogger(__name__)


def serve(
    weights: Weights,
    host: Host = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help=help_for("model_port"), show_default="8010")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help=help_for("data_dir"), show_default="the user's")] = None,
    expose: Expose = False,
    allowed_host: AllowedHosts = None,
    threshold: Threshold = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
    precision: ChosenPrecision = None,
    tile: Tile = None,
    overlap: Overlap = None,
    basic_auth: BasicAuth = None,
) -> None:
    """The model server alone, for a Label Studio that runs already.

    Enter its address in Label Studio under Settings > Model > Connect Model, or use `spica connect`.

    [bold]Example[/bold]: spica serve --weights gwhd.pth
    """
    settings = settings_with(
        host=host,
        model_port=port,
        data_dir=data_dir,
        allowed_hosts=allowed_host,
        threshold=threshold,
        norm_eps=norm_eps,
        max_detections=max_detections,
        precision=precision,
        tile=tile,
        overlap=overlap,
        basic_auth=basic_auth,
    )
    log_to_console()
    with ThreadPoolExecutor(1) as pool:  # reading the weights takes as long as importing the server
        found = pool.submit(_identified, weights, settings)
        from spica.labelstudio.ports import reachable
        from spica.server.build import build_engine, build_service
        from spica.server.run import ensure_port_free, refuse_exposed
        from spica.server.run import serve as serve_forever

        refuse_exposed(settings.host, expose=expose)
        identity = found.result()
    ensure_port_free(settings.host, settings.model_port, option="--port")
    terminate_like_ctrl_c()
    with contextlib.closing(build_engine(identity, settings)) as engine:
        where = f"http://{reachable(settings.host)}:{settings.model_port}"
        logger.info("serving %s on %s, stop with Ctrl-C", engine.name, where)
        service = build_service(engine, identity, settings)
        serve_forever(service, settings, host=settings.host, port=settings.model_port)


def _identified(weights: Path, settings: Settings) -> ModelIdentity:
    """What the weights are; what this machine can compute is found out on the way, which importing OpenVINO takes."""
    from spica.models.serving import choose

    identity = identify(weights, settings)
    choose(identity, settings)
    return identity


def connect(
    project: ProjectNumber,
    url: Url = None,
    token: Token = None,
    data_dir: LabelStudioDataDir = None,
    model_url: Annotated[
        str | None,
        typer.Option(
            help="Address of the model server, as Label Studio reaches it.", show_default="http://127.0.0.1:8010"
        ),
    ] = None,
    basic_auth: BasicAuth = None,
    no_interactive: Annotated[
        bool, typer.Option("--no-interactive", help="Without interactive pre-annotations.")
    ] = False,
) -> None:
    """Register a running model server with a project of Label Studio; twice is once.

    [bold]Example[/bold]: spica connect --project 1
    """
    from spica.connect import connect as connect_project

    settings = label_studio(url, token, data_dir, basic_auth=basic_auth)
    with client_for(settings) as client:
        report = connect_project(
            client,
            project,
            model_url=model_url or f"http://127.0.0.1:{settings.model_port}",
            basic_auth=settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None,
            interactive=not no_interactive,
        )
    out.print(f"Project {project} is connected to {report.url} as {report.version}.")
    for problem in report.problems:
        err.print(f"[yellow]Note:[/yellow] {escape(problem)}")


def doctor(
    url: Url = None,
    token: Token = None,
    project: Annotated[int | None, typer.Option(min=1, help="Look at this project.", show_default="all")] = None,
    model_url: Annotated[
        str | None, typer.Option(help="Address of the model server.", show_default="http://127.0.0.1:8010")
    ] = None,
    data_dir: LabelStudioDataDir = None,
    basic_auth: BasicAuth = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Name what is wrong, and the line that mends it.

    [bold]Example[/bold]: spica doctor --project 1
    """
    from spica.doctor import examine, print_findings

    settings = label_studio(url, token, data_dir, basic_auth=basic_auth)
    findings = examine(settings, project=project, model_url=model_url or f"http://127.0.0.1:{settings.model_port}")
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], ensure_ascii=False, indent=2))
    else:
        print_findings(findings, out)
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)
