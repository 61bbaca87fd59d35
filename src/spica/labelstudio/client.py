"""The connection to a running Label Studio."""

from __future__ import annotations

from spica.labelstudio.api.annotations import AnnotationsApi
from spica.labelstudio.api.backends import BackendsApi
from spica.labelstudio.api.storages import StoragesApi
from spica.labelstudio.api.worklist import WorklistApi


class LabelStudioClient(AnnotationsApi, BackendsApi, StoragesApi, WorklistApi):
    """Everything that Spica asks of a Label Studio.

    Thread-safe; used in a ``with`` block, or closed by ``close()``. Its methods raise
    :class:`spica.errors.LabelStudioError`, :class:`spica.errors.LabelStudioUnreachableError` or
    :class:`spica.errors.AuthenticationError`, each saying where, what was expected, what came and what to do, never
    with a token in it. Arguments: see :class:`spica.labelstudio.api.transport.Transport`.
    """
