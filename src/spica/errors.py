"""The exceptions that Spica raises on purpose.

Each says what went wrong, where, what was expected, what came instead, and what to do about it.
Anything else that escapes is a bug of Spica's, never a user's mistake.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SpicaError(Exception):
    """A failure with a remedy.

    Args:
        what: one sentence, without a full stop where a value ends it.
        where: the file, address, task or setting concerned.
        expected: what would have been right.
        got: what came instead.
        hint: what the reader should do next.
    """

    code: ClassVar[str] = "error"
    """Stable name of this kind of failure, for programs."""
    status: ClassVar[int] = 500
    """HTTP status with which a server answers it."""
    exit_code: ClassVar[int] = 1
    """Exit status of a command that fails with it."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = _encodable(what)
        self.where = _encodable(where)
        self.expected = _encodable(expected)
        self.got = _encodable(got)
        self.hint = _encodable(hint)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where is not None:
            parts.append(f"  where:    {self.where}")
        if self.expected is not None:
            parts.append(f"  expected: {self.expected}")
        if self.got is not None:
            parts.append(f"  got:      {self.got}")
        if self.hint is not None:
            parts.append(f"  to do:    {self.hint}")
        return "\n".join(parts)

    @property
    def summary(self) -> str:
        """The same on one line, for logs and tables."""
        facts = {"where": self.where, "expected": self.expected, "got": self.got}
        told = [f"{name}: {fact}" for name, fact in facts.items() if fact is not None]
        text = self.what + (f" ({'; '.join(told)})" if told else "")
        return f"{text}. {self.hint}" if self.hint is not None else text

    def as_json(self) -> dict[str, Any]:
        """The one JSON shape of errors: ``{"error": {code, message, where, expected, got, hint}}``."""
        return {
            "error": {
                "code": self.code,
                "message": self.what,
                "where": self.where,
                "expected": self.expected,
                "got": self.got,
                "hint": self.hint,
            }
        }


def _encodable(text: Any) -> Any:
    """Texts of files and requests may hold half a surrogate pair, which no answer and no log can be written with."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


class UsageError(SpicaError):
    """A command or setting that can't be carried out as given."""

    code = "usage"
    status = 400
    exit_code = 2


class WeightsError(SpicaError):
    """A weights file that can't be used: missing, damaged, unsafe or of another kind."""

    code = "weights"


class ModelUnavailableError(SpicaError):
    """The model failed to load; nothing can be predicted until that is mended."""

    code = "model_unavailable"
    status = 503


class DetectorContractError(SpicaError):
    """A detector's answer broke the contract of :class:`spica.detectors.contract.Detector`."""

    code = "detector_contract"


class QueueFullError(SpicaError):
    """More work waits than the server accepts; try again after ``retry_after_s`` seconds."""

    code = "queue_full"
    status = 503

    def __init__(self, what: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.retry_after_s = retry_after_s


class ImageError(SpicaError):
    """An image that can't be decoded: damaged, empty, too large, or no image at all."""

    code = "image"
    status = 422


class MediaError(SpicaError):
    """The bytes of a task's image can't be had."""

    code = "media"
    status = 422


class ConfinementError(MediaError):
    """An address that leads out of the folders that may be read."""

    code = "media_forbidden"
    status = 403


class LabelConfigError(SpicaError):
    """A labelling configuration without anything that a detector could fill."""

    code = "label_config"
    status = 422


class RequestError(SpicaError):
    """A request that is not what the route takes: the client's mistake."""

    code = "bad_request"
    status = 400


class NotFoundError(RequestError):
    """There is no such thing as the client asks for."""

    code = "not_found"
    status = 404


class MethodNotAllowedError(RequestError):
    """A route that exists does not take this method."""

    code = "method_not_allowed"
    status = 405


class RequestTooLargeError(RequestError):
    """A request body over the limit."""

    code = "request_too_large"
    status = 413


class AuthenticationError(SpicaError):
    """Missing or wrong credentials, ours or Label Studio's."""

    code = "authentication"
    status = 401


class LabelStudioError(SpicaError):
    """Label Studio refused a request or answered something unexpected."""

    code = "label_studio"
    status = 502


class LabelStudioRefusedError(LabelStudioError):
    """A request that Label Studio answered with an error status.

    Attributes:
        http_status: the status that it answered.
        retry_after_s: seconds after which it asks to try again, if it said so.
    """

    def __init__(
        self,
        what: str,
        http_status: int,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(what, where=where, expected=expected, got=got, hint=hint or _hint_for(http_status))
        self.http_status = http_status
        self.retry_after_s = retry_after_s


def _hint_for(status: int) -> str:
    if status == 403:
        return "the account of this token may not do that: use one that may"
    if status == 404:
        return "check the number of the project and the address of Label Studio"
    if status >= 500:
        return "look into Label Studio's log; if its database was busy, try again"
    return "correct what Label Studio names and try again"


class LabelStudioUnreachableError(LabelStudioError):
    """No answer from Label Studio."""

    code = "label_studio_unreachable"
    status = 502


class LaunchError(SpicaError):
    """A server could not be started: port taken, folder not writable, or it ended early."""

    code = "launch"


class StorageError(SpicaError):
    """A file could not be written: disk full, no permission."""

    code = "storage"


class DataSetError(SpicaError):
    """Annotations or images that nothing can be learned from, or judged by."""

    code = "data_set"
    status = 422


class TrainingError(SpicaError):
    """A training that could not be begun or did not come to its end; what is served is untouched by it."""

    code = "training"
