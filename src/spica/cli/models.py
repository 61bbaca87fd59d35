"""`spica models`: the versions, which of them is active, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from spica.cli.console import confirm, identify, note, out, settings_with
from spica.cli.moving import Place, move
from spica.cli.optimise import optimise
from spica.cli.options import (
    HELP,
    AsJson,
    BasicAuth,
    DataDir,
    DryRun,
    Eps,
    MaxDetections,
    ModelUrl,
    ProjectNumber,
    Token,
    Url,
    Yes,
    add_commands,
)
from spica.cli.progress import working
from spica.cli.projects import project_here

if TYPE_CHECKING:
    from spica.models.active import Pointer
    from spica.project import ProjectKey

models_app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    help="Model versions: list, compare, activate, go back, export, import, delete.\n\n"
    "[bold]Example[/bold]: spica models list",
)

VersionId = Annotated[
    str, typer.Argument(help="Id of a version, its beginning, or the digits at its end.", show_default=False)
]
Refresh = Annotated[
    bool,
    typer.Option("--refresh", help="Wait for the new boxes of unlabelled tasks."),
]


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
    from spica.cli.model_tables import pointers_of, print_list
    from spica.models.listing import list_versions

    folder = _data_dir(data_dir)
    found = list_versions(folder)
    pointers = pointers_of(folder)
    if project is not None:
        found = [each for each in found if any(use.project.number == project for use in each.active)]
        pointers = [each for each in pointers if each["project"] == project]
    if as_json:
        print(json.dumps({"versions": [each.as_json() for each in found], "active": pointers}, ensure_ascii=False))
        return
    print_list(folder, found, pointers)


def show_model(version: VersionId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Everything about a version, after checking every file of it.

    [bold]Example[/bold]: spica models show gwhd-1a2b3c4d
    """
    from spica.cli.model_tables import print_card
    from spica.models.listing import list_versions
    from spica.models.version import find_version, open_version

    folder = _data_dir(data_dir)
    opened = open_version(folder, find_version(folder, version))
    listed = next(each for each in list_versions(folder) if each.id == opened.id)
    if as_json:
        card = json.loads(opened.card.as_json())
        print(json.dumps({**listed.as_json(), "folder": str(opened.folder), "card": card}, ensure_ascii=False))
        return
    print_card(opened, listed)


def diff_models(
    version: VersionId,
    other: Annotated[str, typer.Argument(help="Id of another.", show_default=False)],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Two versions side by side: architecture, classes, what they learned from, metrics, the gate's figures.

    [bold]Example[/bold]: spica models diff gwhd-1a2b3c4d gwhd-5e6f7a8b
    """
    from spica.cli.model_tables import compare, print_comparison
    from spica.models.version import find_version, open_version

    folder = _data_dir(data_dir)
    first, second = (open_version(folder, find_version(folder, each)) for each in (version, other))
    rows = compare(first.card, second.card)
    if as_json:
        told = {name: {"a": a, "b": b} for name, a, b in rows}
        print(json.dumps({"a": first.id, "b": second.id, "differ": told}, ensure_ascii=False))
        return
    print_comparison(first.id, second.id, rows)


def activate_model(
    version: VersionId,
    project: ProjectNumber,
    why: Annotated[str, typer.Option(help="Kept with it, for people.")] = "activated by hand",
    any_weights: Annotated[
        bool, typer.Option("--any-weights", help="Serve it whatever --weights the server was started with.")
    ] = False,
    refresh: Refresh = False,
    yes: Yes = False,
    model_url: ModelUrl = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
    basic_auth: BasicAuth = None,
) -> None:
    """Serve a project with a version from now on; also one that the gate has refused.

    The model server takes it up within seconds, without a restart; then title and version in Label Studio are moved
    together. Without either the choice is kept, and they begin with it.

    [bold]Example[/bold]: spica models activate gwhd-1a2b3c4d --project 1
    """
    from spica.models import active
    from spica.models.version import base_of, find_version

    folder = _data_dir(data_dir)
    wanted = find_version(folder, version)
    place = Place(folder if data_dir is not None else None, url, token, model_url, basic_auth)
    key = project_here(project, folder, place.settings())
    before = _before(folder, key)
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
    _follow(project, wanted, was, place, refresh=refresh, yes=yes)


def rollback_model(
    project: ProjectNumber,
    refresh: Refresh = False,
    yes: Yes = False,
    model_url: ModelUrl = None,
    url: Url = None,
    token: Token = None,
    data_dir: DataDir = None,
    basic_auth: BasicAuth = None,
) -> None:
    """Back to what was active in a project before; again, and it goes one step further back.

    [bold]Example[/bold]: spica models rollback --project 1
    """
    from spica.models import active

    folder = _data_dir(data_dir)
    place = Place(folder if data_dir is not None else None, url, token, model_url, basic_auth)
    key = project_here(project, folder, place.settings())
    before = _before(folder, key)
    now = active.rollback(folder, key, by="spica models rollback")
    was = before.version if before is not None else None
    out.print(
        f"Project {project} is served with {escape(_named(now.version))} again, before with {escape(_named(was))}."
    )
    if was is not None:
        out.print(f"To undo this: spica models activate {escape(was)} --project {project}")
    _follow(project, now.version, was, place, refresh=refresh, yes=yes)


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
    from spica.models.version import find_version, open_version

    folder = _data_dir(data_dir)
    opened = open_version(folder, find_version(folder, version))
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

    folder = _data_dir(data_dir)
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
    from spica.models.version import find_version

    folder = _data_dir(data_dir)
    found = find_version(folder, version)
    space.delete(folder, found, dry_run=True)  # refused before anybody is asked
    if dry_run:
        out.print(f"{escape(found)} would be deleted. Nothing was changed.")
        return
    confirm(f"Delete {found}? It can't be brought back.", yes=yes, refusal=f"{found} would be deleted for good")
    gone = space.delete(folder, found)
    out.print(f"Deleted {escape(gone.id)}, {gone.bytes / 2**20:.1f} MB.")


def pin_model(version: VersionId, data_dir: DataDir = None) -> None:
    """Keep a version, however little space there is.

    [bold]Example[/bold]: spica models pin gwhd-1a2b3c4d
    """
    from spica.models.listing import pin
    from spica.models.version import find_version

    folder = _data_dir(data_dir)
    found = find_version(folder, version)
    pin(folder, found)
    out.print(f"{escape(found)} is pinned.")


def unpin_model(version: VersionId, data_dir: DataDir = None) -> None:
    """Let a pinned version go: it may be deleted when space is needed.

    [bold]Example[/bold]: spica models unpin gwhd-1a2b3c4d
    """
    from spica.models.listing import unpin
    from spica.models.version import find_version

    folder = _data_dir(data_dir)
    found = find_version(folder, version)
    was = unpin(folder, found)
    out.print(f"{escape(found)} is not pinned any more." if was else f"{escape(found)} was not pinned.")


def _data_dir(given: Path | None) -> Path:
    return settings_with(data_dir=given).data_dir


def _named(version: str | None) -> str:
    return version or "the weights that the server was started with"


def _before(folder: Path, project: ProjectKey) -> Pointer | None:
    from spica.errors import StorageError
    from spica.models import active

    try:
        return active.read(folder, project)
    except StorageError as error:
        note(error.summary)
        return None


def _follow(project: int, version: str | None, before: str | None, place: Place, *, refresh: bool, yes: bool) -> None:
    move(project, version, before, place, lambda line: out.print(escape(line)))
    if not refresh:
        out.print(
            "A running model server that has Label Studio's token makes the new boxes by itself; without one: "
            f"spica predictions refresh --project {project}"
        )
        return
    from spica.cli.predictions import refresh_predictions

    refresh_predictions(
        project,
        yes=yes,
        model_url=place.model_url,
        url=place.url,
        token=place.token,
        data_dir=place.data_dir,
        basic_auth=place.basic_auth,
    )


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
