"""`spica serve`, `connect`, `status`, `doctor` and `settings`: the model server, and what is asked about it."""

from __future__ import annotations

import contextlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr
from rich.markup import escape

from spica.cli.console import client_for, identify, log_to_console, model_server_of, note, out, settings_with
from spica.cli.options import (
    AllowedHosts,
    AsJson,
    BasicAuth,
    Computing,
    DataDir,
    Expose,
    Host,
    LabelStudioOptions,
    ModelUrl,
    Port,
    ProjectNumber,
    ServerOptions,
    Weights,
)
from spica.cli.progress import ctrl_c
from spica.settings import Settings, variable_set, variables_of

if TYPE_CHECKING:
    from spica.models.version import ModelIdentity

logger = logging.getLogger(__name__)


def serve(
    weights: Weights,
    computing: Computing,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    expose: Expose = False,
    allowed_host: AllowedHosts = None,
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
        basic_auth=basic_auth,
        **computing.given(),
    )
    log_to_console()
    with ThreadPoolExecutor(1) as pool:  # reading the weights takes as long as importing the server
        future = pool.submit(_identified, weights, settings)
        from spica.http import reachable
        from spica.server.build import build_engine, build_service
        from spica.server.run import ensure_port_free, refuse_exposed
        from spica.server.run import serve as serve_forever

        refuse_exposed(settings.host, expose=expose)
        identity = future.result()
    ensure_port_free(settings.host, settings.model_port, option="--port")
    with ctrl_c(), contextlib.closing(build_engine(identity, settings)) as engine:
        where = f"http://{reachable(settings.host)}:{settings.model_port}"
        logger.info("serving %s on %s, stop with Ctrl-C", engine.name, where)
        service = build_service(engine, identity, settings)
        serve_forever(service, settings, host=settings.host, port=settings.model_port)


def _identified(weights: Path, settings: Settings) -> ModelIdentity:
    """What the weights are; what this machine can compute is looked up on the way, which importing OpenVINO takes."""
    from spica.models.serving import choose

    identity = identify(weights, settings)
    choose(identity, settings)
    return identity


def connect(
    project: ProjectNumber,
    servers: ServerOptions,
    no_interactive: Annotated[
        bool, typer.Option("--no-interactive", help="Without interactive pre-annotations.")
    ] = False,
) -> None:
    """Register a running model server with a project of Label Studio; running it again is safe.

    [bold]Example[/bold]: spica connect --project 1
    """
    from spica.connect import connect as connect_project

    settings = servers.settings()
    address, secret = model_server_of(settings, servers.model_url)
    with client_for(settings) as client:
        connection = connect_project(
            client, project, model_url=address, basic_auth=secret, interactive=not no_interactive
        )
    out.print(f"Project {project} is connected to {connection.url} as {connection.version}.")
    for problem in connection.problems:
        note(problem)


def doctor(
    servers: ServerOptions,
    project: Annotated[
        int | None, typer.Option("--project", min=1, help="Look at this project.", show_default="all")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name what is wrong, and the line that puts it right.

    [bold]Example[/bold]: spica doctor --project 1
    """
    from spica.doctor import examine, print_findings

    settings = servers.settings()
    findings = examine(settings, project=project, model_url=model_server_of(settings, servers.model_url)[0])
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], ensure_ascii=False, indent=2))
    else:
        print_findings(findings, out)
    if any(not finding.ok for finding in findings):
        raise typer.Exit(1)


def settings_command(place: LabelStudioOptions, as_json: AsJson = False) -> None:
    """Every setting: its value, where that comes from, its environment variable. Secrets are not shown.

    With the options of another command that name Label Studio and the data folder, what that command would use.

    [bold]Example[/bold]: spica settings
    """
    options = {"label_studio_url": place.url, "label_studio_api_key": place.token, "data_dir": place.data_dir}
    settings = place.settings()
    plain = settings_with(**options)
    rows = []
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if options.get(name) is not None:
            source = "option"
        elif value != getattr(plain, name):
            source = "file of `spica up`"
        elif variable := variable_set(name):
            source = f"environment ({variable})"
        else:
            source = "default"
        rows.append({"setting": name, "value": _shown(value), "source": source, "variable": variables_of(name)[0]})
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    for row in rows:
        out.print(f"[bold]{row['variable']}[/bold] = {escape(str(row['value']))}  ({row['source']})")
        out.print(f"  [dim]{escape(str(Settings.model_fields[row['setting']].description))}[/dim]")


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "(set, not shown)"
    if value is None or isinstance(value, int | float):
        return "" if value is None else value
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def status(model_url: ModelUrl = None, basic_auth: BasicAuth = None, as_json: AsJson = False) -> None:
    """The model server: its model, its queue, its jobs and trainings with progress, the last tasks that failed.

    [bold]Example[/bold]: spica status

    [bold]Exit status[/bold]: 0 when it answers and its model has not failed, 1 otherwise.
    """
    with ServerOptions(model_url=model_url, basic_auth=basic_auth).server() as server:
        state = server.state()
    if as_json:
        print(json.dumps({"url": server.url, **state}, ensure_ascii=False, indent=2))
    else:
        for line in _status_lines(server.url, state):
            out.print(escape(line))
    if state["model"]["state"] == "failed":
        raise typer.Exit(1)


def _status_lines(url: str, state: dict[str, Any]) -> list[str]:
    model, queue, jobs = state["model"], state["queue"], state["jobs"]
    lines = [
        f"{url} serves {model['id']} ({model['weights']})",
        f"Model: {model['state']}" + (f", {model['error']['message']}" if model["error"] else ""),
        *([f"Computed in {model['precision']}"] if model.get("precision") else []),
        f"Queue: {queue['tasks']} tasks in requests, {queue['images']} images before the network",
        *[line for job in jobs for line in _job_lines(job)],
        *([] if jobs else ["No jobs since its start."]),
        *(_learning_lines(state["learning"]) if state.get("learning") else []),
    ]
    failures = [f"  project {row['project']}, task {row['task']}: {row['reason']}" for row in state["failures"][:10]]
    return [*lines, "Last failed tasks:", *failures] if failures else lines


def _job_lines(job: dict[str, Any]) -> list[str]:
    from spica.prelabel.progress import Progress

    progress = Progress.from_json(job)
    parts = [f"{progress.done} of {progress.total} tasks", f"{progress.failed} failed"]
    if job["finished"] is None:
        parts.append(f"{progress.images_per_s:.1f} images/s")
        if job["eta_s"] is not None:
            parts.append(f"{round(job['eta_s'])} s to go")
    first = f"Job {job['id']}, project {job['project']} ({job['title']}): {job['state']}, " + ", ".join(parts)
    more = (progress.note, job["reason"]["message"] if job["reason"] else None)
    return [first, *(f"  {text}" for text in more if text)]


def _learning_lines(learning: dict[str, Any]) -> list[str]:
    lines = []
    for served in learning["served"]:
        lines.append(f"Project {served['project']}: {served['model_id']}, {served['why']}")
        if problem := served["problem"]:
            text = ". ".join(str(problem[name]) for name in ("message", "got", "hint") if problem.get(name))
            lines.append(f"  {served['wanted'] or 'Its own version'}: {text}")
    for project in learning["projects"]:
        if project["new"] is not None:
            rule = f"a training starts after {project['needed']}" if project["switch"] else "the switch is off"
            lines.append(f"Project {project['project']}: {project['new']} new submissions; {rule}")
        if project["note"]:
            lines.append(f"  {project['note']}")
    runs = [*([learning["running"]] if learning["running"] is not None else []), *learning["runs"][:5]]
    lines += map(_run_line, runs)
    if not learning["token"]:
        lines.append("Learning: off, the server has no access token of Label Studio's (LABEL_STUDIO_API_KEY).")
    return lines


def _run_line(body: dict[str, Any]) -> str:
    from spica.training.runs import Run

    run = Run.from_json(body)
    parts = [f"{run.images} images, {run.boxes} boxes"]
    if run.is_over:
        parts += [text for text in (run.version, run.why) if text]
    else:
        parts += [run.stage, f"epoch {run.epoch} of {run.epochs or '?'}"]
        parts += [f"{name} {value:.3f}" for name, value in run.losses.items()]
        if run.eta_s is not None:
            parts.append(f"{round(run.eta_s)} s to go")
    return f"Training, project {run.project}: {run.state}, " + ", ".join(parts)
