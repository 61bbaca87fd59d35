"""Checks of a project's images: are they served to people, and can the model server read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from spica.doctor import remedies
from spica.doctor.finding import Section
from spica.errors import SpicaError
from spica.http import http_client
from spica.images import decode
from spica.labelstudio.auth import LabelStudioAuth
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.config import LabelConfig
from spica.labelstudio.media import MediaReader
from spica.labelstudio.paths import ConfinedFolder
from spica.labelstudio.protocol import Task, image_places, image_uris
from spica.labelstudio.records import LocalStorage, Project, TaskRow
from spica.settings import Settings

SAMPLES = 3
"""So many tasks are tried: what goes wrong goes wrong for whole folders."""

_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"


@dataclass(frozen=True, slots=True)
class Photograph:
    """One image of a task, by its address in the task's data."""

    task: int
    uri: str

    @property
    def local_name(self) -> str | None:
        """For an image from a local storage, its path relative to the document root."""
        parts = urlsplit(self.uri)
        if not parts.path.rstrip("/").endswith("/data/local-files"):
            return None
        return parse_qs(parts.query).get("d", [None])[-1]


def examine_photographs(
    settings: Settings, client: LabelStudioClient, project: Project, config: LabelConfig | None, section: Section
) -> None:
    """Try a few of the project's images."""
    check = "images-readable"
    if config is None:
        section.skipped(check, "without a labelling configuration it is not known which data are images")
        return
    if project.evaluates_on_listing:
        section.skipped(check, "listing tasks would ask the model, see listing-asks-model")
        return
    rows = section.attempt(check, lambda: list(islice(client.iter_tasks(project.id, page_size=SAMPLES), SAMPLES)))
    if rows is None:
        return
    if not rows:
        section.skipped(check, "the project has no tasks yet")
        return
    photographs = section.attempt(check, lambda: _photographs(rows, config))
    if photographs is None:
        return
    local = [each for each in photographs if each.local_name is not None]
    readable = bool(section.attempt(check, lambda: _check_readable(settings, photographs, section)))
    if local:
        section.attempt("local-files-served", lambda: _check_served(settings, client, project, local, section))
        _check_root(settings, readable, section)


def _photographs(rows: Sequence[TaskRow], config: LabelConfig) -> list[Photograph]:
    """The images of these tasks, one each.

    Raises:
        MediaError: a task has no image where the configuration says.
    """
    control = config.controls[0]
    found = []
    for row in rows:
        task = Task(id=row.id, data=row.data)
        uris = [uri for uri in image_places(task, control) if uri is not None] or image_uris(task, control)
        found += [Photograph(row.id, uri) for uri in uris[:1]]
    return found


def _auth(settings: Settings) -> LabelStudioAuth | None:
    if settings.label_studio_api_key is None:
        return None
    return LabelStudioAuth(settings.label_studio_url, settings.label_studio_api_key.get_secret_value())


def _check_readable(settings: Settings, photographs: Sequence[Photograph], section: Section) -> bool:
    """Read and decode as the model server does with these settings."""
    check = "images-readable"
    failures: list[tuple[Photograph, SpicaError]] = []
    with MediaReader(
        label_studio_url=settings.label_studio_url,
        auth=_auth(settings),
        document_root=settings.local_files_document_root,
        media_dir=settings.label_studio_data_dir / "media",
        max_bytes=settings.max_image_bytes,
        timeout_s=settings.media_timeout_s,
    ) as reader:
        for photograph in photographs:
            try:
                data = reader.read(photograph.uri, task_id=photograph.task)
                decode(data, where=photograph.uri[:200], max_pixels=settings.max_pixels)
            except SpicaError as failure:
                failures.append((photograph, failure))
    if not failures:
        section.ok(check, f"{len(photographs)} of its images were read, as a test")
        return True
    photograph, error = failures[0]
    section.failure(
        check,
        SpicaError(
            f"{len(failures)} of {len(photographs)} images that were tried can't be read, such as task "
            f"{photograph.task}'s: {error.what}",
            where=error.where,
            expected=error.expected,
            got=error.got,
            hint=error.hint,
        ),
    )
    return False


def _check_root(settings: Settings, readable: bool, section: Section) -> None:
    """The folder from which the model server reads local files."""
    check, root = "local-files-root", settings.local_files_document_root
    advice = (
        "where the model server starts, set the same folder as for Label Studio:\n"
        f"{remedies.environment(LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT='<folder>')}"
    )
    if root is not None and root.is_dir():
        section.ok(check, f"local files are read from {root}")
    elif root is not None:
        section.problem(check, "the folder of local files does not exist", where=f"{_ROOT}={root}", hint=advice)
    elif readable:
        section.ok(check, f"{_ROOT} is not set here: images come through Label Studio", hint=f"faster: {advice}")
    else:
        section.problem(check, "the folder of local files is not set", where=_ROOT, hint=advice)


def _check_served(
    settings: Settings, client: LabelStudioClient, project: Project, local: Sequence[Photograph], section: Section
) -> None:
    """Whether Label Studio serves local images to annotators."""
    check = "local-files-served"
    for photograph in local:
        name = photograph.local_name or ""
        where = f"{client.url}/data/local-files/?d={quote(name)}"
        status = _served(settings, where)
        if status in (200, 206):
            continue
        if status == 403:
            root = settings.local_files_document_root
            section.problem(
                check,
                "Label Studio does not serve local files, so annotators see no images",
                where=where,
                got="HTTP 403",
                hint=remedies.serve_local_files(str(root) if root is not None else "<folder above the images>"),
            )
        elif status == 404:
            _not_found(settings, client, project, name, where, section)
        else:
            section.problem(
                check,
                "Label Studio can't serve an image",
                where=where,
                got=f"HTTP {status}" if status else "no answer",
                hint="look into Label Studio's log",
            )
        return
    section.ok(check, "Label Studio serves local files to annotators")


def _served(settings: Settings, address: str) -> int:
    """The status with which Label Studio answers for an image, of which only the first byte is fetched; 0 without."""
    with http_client(address, timeout=settings.media_timeout_s) as http:
        try:
            with http.stream("GET", address, auth=_auth(settings), headers={"Range": "bytes=0-0"}) as response:
                return response.status_code
        except httpx.TransportError:
            return 0


def _not_found(
    settings: Settings, client: LabelStudioClient, project: Project, name: str, where: str, section: Section
) -> None:
    """Label Studio answers 404 both for a file that is not there and for one that no storage covers."""
    check = "local-files-served"
    page = f"{client.url}/projects/{project.id}/settings/storage"
    storages = client.local_storages(project.id)
    root = settings.local_files_document_root
    folder = ConfinedFolder(root, setting=_ROOT) if root is not None else None
    path = Path(folder.shown(name) if folder is not None else name)
    exists = folder is not None and folder.find(name) is not None
    got = f"HTTP 404; the project's local storages: {', '.join(each.path for each in storages) or 'none'}"
    if exists and root is not None and path.parent == root:
        section.problem(
            check,
            "an image lies in the document root itself, which Label Studio never serves",
            where=str(path),
            got=got,
            hint=f"move the images into a folder below {root}, add it under {page} (Local files), and sync",
        )
    elif exists and not _covered(path, storages):
        section.problem(
            check,
            "no local storage covers the folder of an image, so Label Studio does not serve it",
            where=str(path),
            got=got,
            hint=f"under {page}, Add Source Storage > Local files, with this absolute local path, and save it "
            "(syncing is not needed; a Label Studio of `spica up` takes folders by `spica up` only):"
            f"\n  {path.parent}",
        )
    elif exists:
        section.problem(
            check,
            "the image is on this machine, and Label Studio does not find it",
            where=str(path),
            got=got,
            hint="Label Studio's document root is another one, or it runs elsewhere. On its machine, "
            + remedies.serve_local_files(str(root)),
        )
    elif root is not None:
        section.problem(
            check,
            "an image is not where its task says",
            where=str(path),
            got=f"no such file; {got}",
            hint=f"put it back, or check {_ROOT}: it must be the same as Label Studio's",
        )
    else:
        section.problem(
            check,
            "Label Studio does not find an image",
            where=where,
            got=got,
            hint=f"either the file is gone, or no local storage covers its folder: add it under {page} (Local files)",
        )


def _covered(path: Path, storages: Sequence[LocalStorage]) -> bool:
    # Links followed: `spica up` gives Label Studio nothing but links to the photographs.
    real = path.resolve()
    return any(
        path.is_relative_to(storage.path) or real.is_relative_to(Path(storage.path).resolve())
        for storage in storages
        if storage.path
    )
