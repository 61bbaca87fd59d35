"""`spica status`: what a model server is doing."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from spica.cli.console import out, settings_with
from spica.cli.options import ModelUrl, ServerAuth
from spica.cli.remote import RemoteServer


def status(
    model_url: ModelUrl = None,
    basic_auth: ServerAuth = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The model server: its model, its queue, its jobs and trainings with progress, the last tasks that failed.

    [bold]Example[/bold]: spica status

    [bold]Exit status[/bold]: 0 when it answers and its model has not failed, 1 otherwise.
    """
    settings = settings_with(basic_auth=basic_auth)
    secret = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
    with RemoteServer(model_url or f"http://127.0.0.1:{settings.model_port}", secret) as server:
        state = server.state()
        if as_json:
            print(json.dumps({"url": server.url, **state}, ensure_ascii=False, indent=2))
        else:
            _print(server.url, state)
    if state["model"]["state"] == "failed":
        raise typer.Exit(1)


def _print(url: str, state: dict[str, Any]) -> None:
    model, queue = state["model"], state["queue"]
    out.print(f"[bold]{escape(url)}[/bold] serves {escape(str(model['id']))} ({escape(str(model['weights']))})")
    out.print(f"Model: {model['state']}" + (f", {escape(str(model['error']['message']))}" if model["error"] else ""))
    if model.get("precision"):
        out.print(f"Computed in {escape(str(model['precision']))}")
    out.print(f"Queue: {queue['tasks']} tasks in requests, {queue['images']} images before the network")
    for job in state["jobs"]:
        _print_job(job)
    if not state["jobs"]:
        out.print("No jobs since its start.")
    if state.get("learning"):
        _print_learning(state["learning"])
    if state["failures"]:
        out.print("Last failed tasks:")
    for failure in state["failures"][:10]:
        out.print(f"  project {failure['project']}, task {failure['task']}: {escape(str(failure['reason']))}")


def _print_job(job: dict[str, Any]) -> None:
    from spica.prelabel.progress import Progress

    progress = Progress.from_json(job)
    parts = [f"{progress.done} of {progress.total} tasks", f"{progress.failed} failed"]
    if job["finished"] is None:
        parts.append(f"{progress.images_per_s:.1f} images/s")
        if job["eta_s"] is not None:
            parts.append(f"{round(job['eta_s'])} s to go")
    out.print(
        f"Job {job['id']}, project {job['project']} ({escape(str(job['title']))}): {job['state']}, " + ", ".join(parts)
    )
    for text in (progress.note, job["reason"]["message"] if job["reason"] else None):
        if text:
            out.print(f"  {escape(str(text))}")


def _print_learning(learning: dict[str, Any]) -> None:
    for served in learning["served"]:
        out.print(f"Project {served['project']}: {escape(str(served['model_id']))}, {escape(str(served['why']))}")
        if served["problem"]:
            problem = served["problem"]
            told = ". ".join(str(problem[name]) for name in ("message", "got", "hint") if problem.get(name))
            out.print(f"  {escape(str(served['wanted'] or 'Its own version'))}: {escape(told)}")
    for standing in learning["projects"]:
        if standing["new"] is not None:
            rule = f"a training starts after {standing['needed']}" if standing["switch"] else "the switch is off"
            out.print(f"Project {standing['project']}: {standing['new']} new submissions; {rule}")
        if standing["note"]:
            out.print(f"  {escape(str(standing['note']))}")
    running = learning["running"]
    if running is not None:
        _print_run(running)
    for run in learning["runs"][:5]:
        _print_run(run)
    if not learning["token"]:
        out.print("Learning: off, the server has no access token of Label Studio's (LABEL_STUDIO_API_KEY).")


def _print_run(run: dict[str, Any]) -> None:
    from spica.training.runs import Run

    told = Run.from_json(run)
    parts = [f"{told.images} images, {told.boxes} boxes"]
    if told.is_over:
        parts += [text for text in (told.version, told.why) if text]
    else:
        parts += [told.stage, f"epoch {told.epoch} of {told.epochs or '?'}"]
        parts += [f"{name} {value:.3f}" for name, value in told.losses.items()]
        if told.eta_s is not None:
            parts.append(f"{round(told.eta_s)} s to go")
    out.print(f"Training, project {told.project}: {told.state}, " + escape(", ".join(parts)))
