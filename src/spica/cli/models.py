"""`spica models`: the versions, which of them is active, and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from spica.cli.console import client_for, confirm, identify, note, out, settings_with
from spica.cli.data import with_old_state
from spica.cli.optimise import optimise
from spica.cli.options import (
    HELP,
    AsJson,
    DataDir,
    DryRun,
    Eps,
    MaxDetections,
    ProjectNumber,
    ServerOptions,
    Yes,
    add_commands,
)
from spica.cli.progress import working
from spica.errors import LabelStudioError, LabelStudioRefusedError, SpicaError, StorageError, UsageError
from spica.project import ProjectKey
from spica.settings import Settings

if TYPE_CHECKING:
    from spica.models.active import Pointer
    from spica.models.card import Card
    from spica.models.listing import Listed

models_app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Model versions: list, compare, activate, go back, export, import, delete.\n\n"
    "[bold]Example[/bold]: spica models list",
)

VersionId = Annotated[
    str, typer.Argument(help="Id of a version, its beginning, or the digits at its end.", show_default=False)
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Wait for the new boxes of unlabelled tasks.")]

_PATIENCE_S = 90.0
"""The model server looks for changes once a second; then it loads the version, and converts nothing."""

_PAUSE_S = 0.2

_LONG = 30
"""Longer records, such as of every submission that was learned from, are shown by their length."""


def list_models(
    project: Annotated[
        int | None, typer.Option("--project", min=1, help="Only what this project uses.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """The versions, the newest first: parent, what they learned from, hold-out, the gate's verdict, active or not.

    [bold]Example[/bold]: spica models list
    """
    from rich.table import Table

    from spica.models.listing import list_versions

    folder = _folder(data_dir)
    rows, pointers = list_versions(folder), _pointers(folder)
    if project is not None:
        rows = [row for row in rows if any(use.project.number == project for use in row.active)]
        pointers = [pointer for pointer in pointers if pointer["project"] == project]
    if as_json:
        print(json.dumps({"versions": [row.as_json() for row in rows], "active": pointers}, ensure_ascii=False))
        return
    if rows:
        table = Table("Version", "Made", "Parent", "Learned from", "Hold-out", "Gate", "Active", "Size")
        for row in rows:
            table.add_row(*map(escape, _cells(row)))
        out.print(table, soft_wrap=False)
    else:
        out.print(f"No model version is stored in {escape(str(folder))} (--data-dir names another folder).")
    for row in rows:
        if row.damaged is not None:
            out.print(f"[yellow]Damaged:[/yellow] {escape(row.id)}: {escape(row.damaged)}")
    for line in _pointer_lines(pointers):
        out.print(line)


def show_model(version: VersionId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Everything about a version, after checking every file of it.

    [bold]Example[/bold]: spica models show gwhd-1a2b3c4d
    """
    from spica.models.listing import list_versions
    from spica.models.version import open_version

    opened = open_version(*_find(data_dir, version))
    listed = next(row for row in list_versions(_folder(data_dir)) if row.id == opened.id)
    if as_json:
        card = json.loads(opened.card.as_json())
        print(json.dumps({**listed.as_json(), "folder": str(opened.folder), "card": card}, ensure_ascii=False))
        return
    facts = {"folder": opened.folder, **_facts(opened.card, listed)}
    width = max(map(len, facts))
    out.print(f"[bold]{escape(opened.id)}[/bold]")
    for name, value in facts.items():
        if value is not None:
            out.print(f"  {name:<{width}}  {escape(_shown(value))}")


def diff_models(
    version: VersionId,
    other: Annotated[str, typer.Argument(help="Id of another.", show_default=False)],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Two versions side by side: architecture, classes, what they learned from, metrics, the gate's figures.

    [bold]Example[/bold]: spica models diff gwhd-1a2b3c4d gwhd-5e6f7a8b
    """
    from rich.table import Table

    from spica.models.version import open_version

    first, second = (open_version(*_find(data_dir, name)) for name in (version, other))
    a, b = _facts(first.card), _facts(second.card)
    rows = [(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])]
    rows = [row for row in rows if row[1] is not None or row[2] is not None]
    if as_json:
        differ = {name: {"a": left, "b": right} for name, left, right in rows}
        print(json.dumps({"a": first.id, "b": second.id, "differ": differ}, ensure_ascii=False))
        return
    table = Table("", escape(first.id), escape(second.id), "Difference")
    for name, left, right in rows:
        table.add_row(*map(escape, (name, _shown(left), _shown(right))), _difference(left, right))
    out.print(table, soft_wrap=False)


def activate_model(
    version: VersionId,
    project: ProjectNumber,
    servers: ServerOptions,
    why: Annotated[str, typer.Option(help="A reason, kept with it.")] = "activated by hand",
    any_weights: Annotated[
        bool, typer.Option("--any-weights", help="Serve it whatever --weights the server was started with.")
    ] = False,
    refresh: Refresh = False,
    yes: Yes = False,
) -> None:
    """Serve a project with a version from now on; also one that the gate has refused.

    The model server takes it up within seconds, without a restart; then title and version in Label Studio are moved
    together. Without either the choice is kept, and they begin with it.

    [bold]Example[/bold]: spica models activate gwhd-1a2b3c4d --project 1
    """
    from spica.models import active
    from spica.models.version import base_of

    folder, wanted = _find(servers.data_dir, version)
    key = _project_key(project, folder, servers.settings())
    before = _active(folder, key)
    base = None if any_weights else base_of(folder, wanted)
    now = active.activate(folder, key, wanted, base=base, why=why, by="spica models activate")
    was = before.version if before is not None else None
    if before == now:
        out.print(f"Project {project} is served with {escape(wanted)} already.")
    else:
        out.print(f"Project {project} is served with {escape(wanted)} from now on, before with {escape(_named(was))}.")
    if not key.created:
        out.print(
            f"Label Studio could not be asked which project {project} that is: the model server finds out; its page "
            "says so where it can't. With --token it is certain."
        )
    if now.base is not None:
        out.print(f"This holds where the server's --weights are {escape(now.base)}.")
    _follow(project, wanted, was, servers, refresh=refresh, yes=yes)


def rollback_model(project: ProjectNumber, servers: ServerOptions, refresh: Refresh = False, yes: Yes = False) -> None:
    """Back to what was active in a project before; again, and it goes one step further back.

    [bold]Example[/bold]: spica models rollback --project 1
    """
    from spica.models import active

    folder = _folder(servers.data_dir)
    key = _project_key(project, folder, servers.settings())
    before = _active(folder, key)
    now = active.rollback(folder, key, by="spica models rollback")
    was = before.version if before is not None else None
    out.print(
        f"Project {project} is served with {escape(_named(now.version))} again, before with {escape(_named(was))}."
    )
    if was is not None:
        out.print(f"To undo this: spica models activate {escape(was)} --project {project}")
    _follow(project, now.version, was, servers, refresh=refresh, yes=yes)


def export_model(
    version: VersionId,
    to: Annotated[
        Path,
        typer.Option(
            "--out",
            help="weights.pth (a plain state_dict), weights.safetensors, version.zip, or a folder.",
            show_default=False,
        ),
    ],
    data_dir: DataDir = None,
) -> None:
    """Write a version, or its weights alone, to a file; after checking every file of it.

    [bold]Example[/bold]: spica models export gwhd-1a2b3c4d --out gwhd.pth
    """
    from spica.models.transfer import export
    from spica.models.version import open_version

    opened = open_version(*_find(data_dir, version))
    out.print(f"Wrote {escape(str(export(opened, to)))}.")


def import_model(
    source: Annotated[
        Path, typer.Argument(help="Version's folder or .zip, or a weights file.", show_default=False, metavar="FILE")
    ],
    data_dir: DataDir = None,
    norm_eps: Eps = None,
    max_detections: MaxDetections = None,
) -> None:
    """Put a version that was exported elsewhere, or a weights file, into the store. Nothing in it is run.

    [bold]Example[/bold]: spica models import gwhd.zip
    """
    from spica.models import store
    from spica.models.transfer import bring_in, is_archive

    folder = _folder(data_dir)
    if source.is_dir() or source.suffix.lower() == ".zip" or is_archive(source):
        version, is_new = bring_in(source, folder)
    else:
        settings = settings_with(data_dir=folder, norm_eps=norm_eps, max_detections=max_detections)
        identity = identify(source, settings)
        is_new = not (folder / "models" / identity.id).exists()
        with working() as say:
            version = store.ensure(identity, data_dir=folder, progress=say)
    out.print(f"Imported {escape(version.id)}." if is_new else f"{escape(version.id)} is in the store already.")
    out.print(f"To serve a project with it: spica models activate {escape(version.id)} --project N")


def delete_model(version: VersionId, yes: Yes = False, dry_run: DryRun = False, data_dir: DataDir = None) -> None:
    """Delete a version and its caches; not an active one, its parent, a pinned one, or one that a server has loaded.

    It asks before; --yes answers for you.

    [bold]Example[/bold]: spica models delete gwhd-1a2b3c4d
    """
    from spica.models import space

    folder, name = _find(data_dir, version)
    space.delete(folder, name, dry_run=True)  # refused before anybody is asked
    if dry_run:
        out.print(f"{escape(name)} would be deleted. Nothing was changed.")
        return
    confirm(f"Delete {name}? It can't be brought back.", yes=yes, refusal=f"{name} would be deleted for good")
    gone = space.delete(folder, name)
    out.print(f"Deleted {escape(gone.id)}, {gone.bytes / 2**20:.1f} MB.")


def pin_model(version: VersionId, data_dir: DataDir = None) -> None:
    """Keep a version, however little space there is.

    [bold]Example[/bold]: spica models pin gwhd-1a2b3c4d
    """
    from spica.models.listing import pin

    folder, name = _find(data_dir, version)
    pin(folder, name)
    out.print(f"{escape(name)} is pinned.")


def unpin_model(version: VersionId, data_dir: DataDir = None) -> None:
    """Let a pinned version go: it may be deleted when space is needed.

    [bold]Example[/bold]: spica models unpin gwhd-1a2b3c4d
    """
    from spica.models.listing import unpin

    folder, name = _find(data_dir, version)
    was = unpin(folder, name)
    out.print(f"{escape(name)} is not pinned any more." if was else f"{escape(name)} was not pinned.")


# --- which project, and what is active -------------------------------------------------------------------------------


def _folder(data_dir: Path | None) -> Path:
    return settings_with(data_dir=data_dir).data_dir


def _find(data_dir: Path | None, version: str) -> tuple[Path, str]:
    """The data folder, and the id of a version in it."""
    from spica.models.version import find_version

    folder = _folder(data_dir)
    return folder, find_version(folder, version)


def _named(version: str | None) -> str:
    return version or "the weights that the server was started with"


def _active(folder: Path, project: ProjectKey) -> Pointer | None:
    from spica.models import active

    try:
        return active.read(folder, project)
    except StorageError as error:
        note(error.summary)
        return None


def _project_key(number: int, data_dir: Path, settings: Settings) -> ProjectKey:
    """The project of a number, as Label Studio says; where that can't be asked, the one that something is kept of.

    With neither, the number alone: the model server gives what is kept under it to the project it turns out to be.

    Raises:
        UsageError: Label Studio can't be asked, and several are known.
        LabelStudioError: Label Studio has no such project.
    """
    from spica.models import active

    why = "there is no token for Label Studio"
    if settings.label_studio_api_key is not None:
        try:
            with client_for(settings) as client:
                key = client.project(number).key
        except LabelStudioRefusedError:
            raise
        except LabelStudioError as error:
            why = error.summary
        else:
            with_old_state(data_dir, key)
            return key
    known = [key for key in active.projects(data_dir) if key.number == number]
    if len(known) > 1:
        raise UsageError(
            f"there are several projects {number}, each of another Label Studio",
            where=str(data_dir / "active"),
            expected="a Label Studio that says which one is meant",
            got=f"{why}; known are those created {', '.join(key.date or 'at an unknown time' for key in known)}",
            hint="give the address and token of the one that is meant with --url and --token, or --data-dir of its "
            "`spica up`",
        )
    return known[0] if known else ProjectKey(number)


def _follow(
    project: int, version: str | None, before: str | None, servers: ServerOptions, *, refresh: bool, yes: bool
) -> None:
    _move(project, version, before, servers, lambda line: out.print(escape(line)))
    if refresh:
        from spica.cli.predictions import refresh_predictions

        refresh_predictions(project, servers, yes=yes)
        return
    out.print(
        "A running model server that has Label Studio's token makes the new boxes by itself; without one: "
        f"spica predictions refresh --project {project}"
    )


def _move(
    project: int, version: str | None, before: str | None, servers: ServerOptions, say: Callable[[str], None]
) -> bool:
    """Wait until the model server answers with a version, then have Label Studio ask for it, by which it is shown.

    The pointer in the store is all that counts; this only saves waiting or doing it by hand, so what can't be done is
    said, and is no failure.

    Args:
        project: its number.
        version: that is active now; None for the weights that the server was started with.
        before: that was active.
        servers: where Label Studio and the model server are.
        say: called with what was done, or why it was not, a line each.

    Returns:
        Whether Label Studio shows the version.
    """
    from spica.connect import RemoteServer, connect
    from spica.http import same_url
    from spica.labelstudio.client import LabelStudioClient

    settings = servers.settings()
    later = f"`spica connect --project {project}` tells Label Studio later"
    if settings.label_studio_api_key is None:
        say(f"Label Studio was not told, for want of a token (--token, or --data-dir of `spica up`); {later}.")
        return False
    auth = settings.basic_auth.get_secret_value() if settings.basic_auth is not None else None
    token = settings.label_studio_api_key.get_secret_value()
    try:
        with LabelStudioClient(settings.label_studio_url, token) as client:
            row = client.project(project)
            models = client.backends(project)  # the one at the address, else the first, which Label Studio asks
            model = next((m for m in models if servers.model_url is None or same_url(m.url, servers.model_url)), None)
            url = servers.model_url or (model.url if model is not None else None)
            if url is None:
                say(f"No model is connected with project {project}; {later}, once the model server runs.")
                return False
            with RemoteServer(url, auth) as server:
                answers = _wait(lambda: str(server.setup(row.key, row.label_config)["model_version"]), version, before)
            if answers is not None:
                say(f"The model server at {url} still answers with {answers}; its page says why; {later}.")
                return False
            interactive = model.is_interactive if model is not None else True
            done = connect(client, project, model_url=url, basic_auth=auth, interactive=interactive)
    except SpicaError as error:
        say(f"Label Studio was not told: {error.summary}; {later}.")
        return False
    say(f"Label Studio shows project {project} with {done.version}.")
    for problem in done.problems:
        say(f"Note: {problem}")
    return True


def _wait(answer: Callable[[], str], version: str | None, before: str | None) -> str | None:
    """None as soon as the server answers with the version; else, after a while, what it answers with."""
    from spica.models.version import answers_with

    until = time.monotonic() + _PATIENCE_S
    while True:
        name = answer()
        if answers_with(name, version) if version is not None else before is None or not answers_with(name, before):
            return None
        if time.monotonic() >= until:
            return name
        time.sleep(_PAUSE_S)


# --- tables ----------------------------------------------------------------------------------------------------------


def _pointers(data_dir: Path) -> list[dict[str, Any]]:
    """What is active in each project, with the reason; a damaged record as its error."""
    from spica.models import active

    pointers: list[dict[str, Any]] = []
    for project in active.projects(data_dir):
        try:
            pointer = active.read(data_dir, project)
        except StorageError as error:
            pointers.append({"project": project.number, "created": project.created, "error": error.summary})
        else:
            pointers += [] if pointer is None else [pointer.as_json()]
    return pointers


def _pointer_lines(pointers: Sequence[Mapping[str, Any]]) -> list[str]:
    numbers, lines = [pointer["project"] for pointer in pointers], []
    for pointer in pointers:
        name = f"Project {pointer['project']}"
        if numbers.count(pointer["project"]) > 1:  # of several Label Studios
            name += f" (created {ProjectKey(pointer['project'], pointer['created']).date or 'at an unknown time'})"
        if "error" in pointer:
            lines.append(f"[yellow]{name}:[/yellow] {escape(str(pointer['error']))}")
        else:
            served = _named(pointer["version"])
            lines.append(escape(f"{name}: {served}, since {pointer['when']}, by {pointer['by']}: {pointer['why']}"))
    return lines


def _cells(row: Listed) -> list[str]:
    metrics = [(name, row.metrics.get(key)) for name, key in (("AP50", "ap50"), ("AP", "ap"))]
    return [
        row.id,
        row.created[:16].replace("T", " "),
        row.parent or "",
        ", ".join(f"{n} {what}" for n, what in ((row.images, "images"), (row.boxes, "boxes")) if n is not None),
        ", ".join(f"{name} {value:.3f}" for name, value in metrics if isinstance(value, int | float)),
        row.verdict or "",
        ", ".join([f"project {use.project}" for use in row.active] + (["pinned"] if row.pinned else [])),
        "damaged" if row.damaged is not None else f"{row.bytes / 2**20:.0f} MB",
    ]


def _facts(card: Card, listed: Listed | None = None) -> dict[str, Any]:
    """What is known of a version; without its row in the list, what may differ in two or is measured."""
    from spica.classes import class_names
    from spica.models.listing import holdout_of, verdict_of

    facts = {
        "architecture": card.architecture,
        "classes": ", ".join(class_names(card.classes)),
        "made": card.created if listed is None else listed.created,
        "made from": None if listed is None else card.weights.get("name"),
        "parent": card.parent,
        "descends from": card.base,
        "score floor": card.score_floor,
        "boxes at most": card.max_detections,
        **_flat("learned", card.training if isinstance(card.training, Mapping) else {}),
        **(_flat("hold-out", holdout_of(card)) if listed is None else _flat("metrics", card.metrics)),
        "gate": verdict_of(card),
        **_flat("gate", card.gate or {}),
    }
    if listed is not None:
        facts |= {
            "other number formats": ", ".join(card.precisions) or None,
            "active": "; ".join(f"project {use.project} since {use.when}: {use.why}" for use in listed.active) or None,
            "pinned": "yes" if listed.pinned else None,
            "size": f"{listed.bytes / 2**20:.1f} MB",
            "files": ", ".join(card.files) + "; their digests are right",
        }
    return facts


def _flat(name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested records as ``name: key: key``; lists of records are left to the JSON output."""
    facts: dict[str, Any] = {}
    for key, value in record.items():
        label = f"{name}: {key}"
        if isinstance(value, Mapping):
            facts |= {label: f"{len(value)} entries"} if len(value) > _LONG else _flat(label, value)
        elif not isinstance(value, list):
            facts[label] = value
        elif all(isinstance(item, str | int | float) for item in value):
            facts[label] = ", ".join(map(_shown, value))
    return facts


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _difference(a: Any, b: Any) -> str:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)):
        return f"{b - a:+.4g}" if a != b else ""
    return "" if a == b or a is None or b is None else "differs"


add_commands(
    models_app,
    optimise,
    list_models,
    show_model,
    diff_models,
    activate_model,
    rollback_model,
    export_model,
    import_model,
    delete_model,
    pin_model,
    unpin_model,
)
