"""The check of bf16 on a person's own photographs, made once and beside other work that has to be done anyway."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from spica.errors import ModelUnavailableError, SpicaError
from spica.models import store
from spica.models.checks import check_bf16
from spica.models.version import ModelIdentity
from spica.settings import Settings

logger = logging.getLogger(__name__)


class FirstCheck:
    """Makes the version and compares bf16 with f32, in a thread from the entering of the block on.

    Leaving the block stops it after the photograph in hand.

    Args:
        identity: of what will be served.
        photographs: the person's own.
        settings: threads, threshold, limits, data folder.
    """

    def __init__(self, identity: ModelIdentity, photographs: Sequence[Path], settings: Settings) -> None:
        self._identity = identity
        self._photographs = photographs
        self._settings = settings
        self._stop = threading.Event()
        self._error: SpicaError | None = None
        self._thread = threading.Thread(target=self._run, name="spica-first-check", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def wait(self, given_up: threading.Event | None = None) -> None:
        """Until the check is made, or could not be: then the log says why, and f32 is served.

        Args:
            given_up: when set, waits no longer.

        Raises:
            SpicaError: the version itself could not be made.
        """
        while self._thread.is_alive():  # in pieces, or Ctrl-C would wait too on Windows
            if given_up is not None and given_up.is_set():
                return
            self._thread.join(timeout=0.2)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            version = store.ensure(
                self._identity, data_dir=self._settings.data_dir, progress=logger.info, stop=self._stop
            )
        except SpicaError as error:
            self._error = error
            return
        except Exception as error:  # noqa: BLE001 - a thread's own end is seen by nobody, and no model would be there
            self._error = ModelUnavailableError(
                "the model can't be prepared",
                where=str(self._identity.weights.path),
                got=f"{type(error).__name__}: {error}",
                hint="try again; if it stays so, please report it",
            )
            return
        try:
            check = check_bf16(version, self._photographs, self._settings, stop=self._stop)
        except ModelUnavailableError:  # stopped
            return
        except SpicaError as error:
            logger.warning("bf16 could not be checked, so f32 is used: %s", error.summary)
            return
        except Exception as error:  # noqa: BLE001 - of a runtime; what was not checked is not used
            logger.warning("bf16 could not be checked, so f32 is used: %s: %s", type(error).__name__, error)
            return
        if check is None:
            logger.warning("bf16 could not be checked, so f32 is used: no boxes on the photographs looked at")
            return
        logger.info("bf16 %s its check: %s", "has passed" if check.passed else "did not pass", check.result)
