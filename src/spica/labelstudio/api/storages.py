"""Folders on Label Studio's machine whose images become tasks."""

from __future__ import annotations

import ntpath
import posixpath
from pathlib import PurePath, PurePosixPath, PureWindowsPath

from spica.errors import LabelStudioError, LabelStudioRefusedError
from spica.labelstudio.api.records import Json, LocalStorage
from spica.labelstudio.api.transport import Transport

SHOWN = ("avif", "bmp", "gif", "jfif", "jpeg", "jpg", "png", "webp")
"""Endings of what a browser, and so Label Studio, draws: a TIFF could be predicted, but nobody would see it."""

IMAGE_REGEX = rf"(?i)[^.].*\.({'|'.join(SHOWN)})$"
"""File names that become tasks. Names that begin with a dot are left out: macOS writes such shadows of images
(``._IMG_1.jpg``) that hold none."""

_REGEX_BEFORE_AVIF = r"(?i)[^.].*\.(jpe?g|jfif|png|gif|bmp|webp)$"

_SYNC_S = 3600.0
"""Label Studio scans the folder inside the request."""


class StoragesApi(Transport):
    """Calls about local storages."""

    def local_storages(self, project: int) -> list[LocalStorage]:
        """The folders that a project takes its tasks from."""
        bodies = self.call("GET", "/api/storages/localfiles/", params={"project": project})
        return [LocalStorage.read(body) for body in bodies]

    def ensure_local_storage(
        self, project: int, path: str | PurePath, *, title: str = "images", recursive: bool = True
    ) -> LocalStorage:
        """The project's storage of a folder: the one that covers it already, or a new one.

        Args:
            project: its number.
            path: absolute, on Label Studio's machine, strictly below its document root.
            title: shown in Label Studio.
            recursive: whether sub-folders are scanned too.

        Raises:
            LabelStudioError: Label Studio does not serve that folder, or a storage of one of its sub-folders exists,
                so that tasks would be doubled.
        """
        folder = str(path)
        fields: Json = {
            "project": project,
            "title": title,
            "path": folder,
            "use_blob_urls": True,
            "regex_filter": IMAGE_REGEX,
            "recursive_scan": recursive,
        }
        for storage in self.local_storages(project):
            if storage.as_tasks and storage.recursive and _is_within(folder, storage.path):
                if storage.regex_filter != _REGEX_BEFORE_AVIF:
                    return storage
                taken = {**fields, "title": storage.title, "path": storage.path}
                return LocalStorage.read(self._send("PATCH", f"/api/storages/localfiles/{storage.id}", taken, folder))
            if _is_within(folder, storage.path) and _is_within(storage.path, folder):
                body = self._send("PATCH", f"/api/storages/localfiles/{storage.id}", fields, folder)
                return LocalStorage.read(body)
            if recursive and _is_within(storage.path, folder):
                raise LabelStudioError(
                    "a part of this folder is a storage of the project already, its images would be doubled",
                    where=folder,
                    got=storage.path,
                    hint="choose another project, or delete that storage under Settings > Cloud Storage",
                )
        return LocalStorage.read(self._send("POST", "/api/storages/localfiles/", fields, folder))

    def sync_storage(self, storage: int) -> LocalStorage:
        """Make tasks of a folder's new images; those that are tasks already stay as they are.

        Returns:
            The storage; ``added`` is the number of new tasks.

        Raises:
            LabelStudioError: Label Studio could not read the folder.
        """
        path = f"/api/storages/localfiles/{storage}/sync"
        body = self.call("POST", path, repeatable=True, timeout_s=_SYNC_S)
        synced = LocalStorage.read(body)
        if synced.status == "failed":
            raise LabelStudioError(
                "Label Studio could not read the folder",
                where=synced.path,
                got=self._clean(synced.failure) or "failed",
                hint="see that the folder exists on Label Studio's machine and may be read by its process",
            )
        return synced

    def _send(self, method: str, path: str, fields: Json, folder: str) -> object:
        try:
            return self.call(method, path, json=fields)
        except LabelStudioRefusedError as refusal:
            if refusal.http_status != 400:
                raise
            parent = _pure(folder).parent
            raise LabelStudioRefusedError(
                "Label Studio does not serve this folder",
                400,
                where=folder,
                expected="a folder strictly below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which can't be it itself",
                got=refusal.got,
                hint="restart Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
                f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={parent}; `spica up` does so itself",
            ) from refusal


def _pure(path: str) -> PurePath:
    """A path of Label Studio's machine, which may run another system than this one."""
    windows = "\\" in path or (len(path) > 1 and path[1] == ":")
    if windows:
        return PureWindowsPath(ntpath.normpath(path))
    return PurePosixPath(posixpath.normpath(path))


def _is_within(path: str, folder: str) -> bool:
    if not folder:
        return False
    inner, outer = _pure(path), _pure(folder)
    return type(inner) is type(outer) and inner.is_relative_to(outer)
