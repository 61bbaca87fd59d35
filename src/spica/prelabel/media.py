"""Images for a job: where Label Studio itself gives no answer, the job waits instead of failing task after task."""

from __future__ import annotations

import threading

import httpx

from spica.errors import LabelStudioRefusedError, MediaError, SpicaError
from spica.http import origin_of
from spica.labelstudio.client import LabelStudioClient
from spica.labelstudio.download import DownloadError
from spica.predictor import Media
from spica.prelabel.patience import Patience

_TRIES = 3
_BUSY = frozenset({408, 425, 429, 502, 503, 504})


class JobEndsError(Exception):
    """What ends the whole job and not one task. Not a :class:`SpicaError`: those are a task's own when it is read."""

    def __init__(self, reason: SpicaError) -> None:
        super().__init__(reason.summary)
        self.reason = reason


class PatientMedia:
    """Reads images; waits for a Label Studio that restarts. Thread-safe.

    Args:
        media: reads them.
        client: Label Studio.
        patience: how long to wait for it.
    """

    def __init__(self, media: Media, client: LabelStudioClient, patience: Patience) -> None:
        self._media = media
        self._client = client
        self._patience = patience
        self._origin = origin_of(client.url)
        self._lock = threading.Lock()

    def read(self, uri: str, *, task_id: int | None = None) -> bytes:
        """The bytes of an image.

        Raises:
            MediaError: this image can't be had.
            JobEndsError: no image can be had, because Label Studio refuses the token or stays away.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._media.read(uri, task_id=task_id)
            except MediaError as error:
                if not self._is_label_studios(error):
                    raise
                self._wait()
        return self._media.read(uri, task_id=task_id)

    def _is_label_studios(self, error: MediaError) -> bool:
        """Whether it was Label Studio that gave no answer, or none to this token."""
        cause = error.__cause__
        if not isinstance(cause, DownloadError) or cause.where is None:
            return False
        try:
            if origin_of(cause.where) != self._origin:
                return False
        except (httpx.InvalidURL, UnicodeError):
            return False
        return cause.http_status is None or cause.http_status in _BUSY or cause.http_status == 401

    def _wait(self) -> None:
        with self._lock:  # one asks for all
            try:
                self._patience.call(self._client.whoami)
            except LabelStudioRefusedError as refusal:
                raise JobEndsError(refusal) from refusal
            except SpicaError as error:
                raise JobEndsError(error) from error
