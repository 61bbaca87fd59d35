"""Shapes of the tensors in a pickle of torch's, and a judgement of all that the pickle asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from spica.detectors.architecture import FASTER_RCNN, find_state_dict
from spica.detectors.pickles import Call, External, Global, Reading
from spica.detectors.refusals import EXPECTED, SAVE_STATE_DICT, few
from spica.errors import WeightsError

Shape = tuple[int, ...]

_ITEM_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
}
"""torch's kinds of storage and their bytes per number."""

_MAX_DIMENSIONS = 8
_MAX_COUNT = 2**40

_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = Global("torch._utils", "_rebuild_parameter")

_HARMLESS = frozenset(
    {Global("collections", "OrderedDict"), Global("torch", "Size"), _TENSOR, _PARAMETER}
    | {Global("torch", kind) for kind in _ITEM_BYTES}
)
"""All that a state_dict needs; torch's own loader for weights alone allows these and little more."""

_RUNS_CODE = frozenset(
    {
        *("os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "importlib", "pty", "ctypes", "code"),
        *("webbrowser", "commands", "multiprocessing"),
        *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__"),
        *("__builtin__.eval", "__builtin__.exec", "__builtin__.execfile"),
    }
)
"""Modules and functions that no weights of anybody need; naming them makes the message plainer, nothing more."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers outside the pickle: ``count`` numbers of ``item_bytes`` bytes, kept under ``key``."""

    key: str
    count: int
    item_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.count * self.item_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's shape and where its numbers are."""

    shape: Shape
    storage: Storage


def state_dict_of(reading: Reading, path: Path) -> dict[str, Tensor]:
    """The tensors by key in a pickle of torch's.

    Raises:
        WeightsError: the pickle asks for more than tensors, or holds no state_dict.
    """
    refuse_code(reading, path)
    value = reading.value
    if isinstance(value, dict):
        value = {
            key: {name: _tensor(item) or item for name, item in inner.items()}
            if isinstance(inner, dict)
            else _tensor(inner) or inner
            for key, inner in value.items()
        }
    state_dict = find_state_dict(value, is_tensor=lambda item: isinstance(item, Tensor))
    if state_dict is None:
        raise WeightsError(
            "this file holds no state_dict",
            where=str(path),
            expected=EXPECTED,
            got=_outline(value),
            hint=SAVE_STATE_DICT,
        )
    return state_dict


def refuse_code(reading: Reading, path: Path) -> None:
    """Raise unless the pickle asks for nothing but tensors and dicts.

    Raises:
        WeightsError: with what it asks for. Nothing of it was run.
    """
    unknown = [wanted for wanted in reading.imports if wanted not in _HARMLESS]
    if not unknown:
        return
    code = [w for w in unknown if w.module.partition(".")[0] in _RUNS_CODE or str(w) in _RUNS_CODE]
    roots = {wanted.module.partition(".")[0] for wanted in unknown}
    if code:
        raise WeightsError(
            "this file would run code when loaded; nothing of it was run",
            where=str(path),
            expected=EXPECTED,
            got=f"a pickle that asks for {few([str(w) for w in code])}",
            hint="don't load it with anything else either; get the weights from a source you trust",
        )
    if "ultralytics" in roots or any(wanted.module.startswith("models.yolo") for wanted in unknown):
        raise WeightsError(
            "this is a model of Ultralytics YOLO, which this version does not serve; nothing of it was run",
            where=str(path),
            expected=EXPECTED,
            got=f"a pickle that asks for {few([str(w) for w in unknown])}",
            hint=f"`yolo export model={path.name} format=onnx` frees it from its Python code, but ONNX files of YOLO "
            f"are not served by this version either: use weights of {FASTER_RCNN}",
        )
    if any(wanted.module.startswith(("torch.nn", "torchvision.")) for wanted in unknown):
        raise WeightsError(
            "this is a whole pickled model, which could run code when loaded; nothing of it was run",
            where=str(path),
            expected=EXPECTED,
            got=f"a pickle that asks for {few([str(w) for w in unknown])}",
            hint=SAVE_STATE_DICT,
        )
    raise WeightsError(
        "this file asks for more than tensors, which could run code when loaded; nothing of it was run",
        where=str(path),
        expected=EXPECTED,
        got=f"a pickle that asks for {few([str(w) for w in unknown])}",
        hint=SAVE_STATE_DICT,
    )


def _outline(value: object) -> str:
    if isinstance(value, dict):
        keys = [key if isinstance(key, str) else f"a {type(key).__name__}" for key in value]
        return f"a dict with the keys {few(keys)}" if keys else "an empty dict"
    return "a single tensor" if isinstance(_tensor(value), Tensor) else f"a {type(value).__name__}"


def _tensor(item: object) -> Tensor | None:
    """The tensor that a call would build, None if it builds none."""
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, Call):
        return None
    if item.function == _PARAMETER and item.arguments:
        inner = item.arguments[0]
        # one level only: a parameter of a parameter of … is no weights file
        return _tensor(inner) if isinstance(inner, Call) and inner.function == _TENSOR else None
    if item.function != _TENSOR or len(item.arguments) < 4:
        return None
    storage, _, size, _ = item.arguments[:4]
    kept = _storage(storage)
    if isinstance(size, Call) and size.arguments:  # torch.Size((…))
        size = size.arguments[0]
    if kept is None or not isinstance(size, tuple) or len(size) > _MAX_DIMENSIONS:
        return None
    if not all(isinstance(side, int) and 0 <= side <= kept.count for side in size):
        return None
    shape: Shape = tuple(int(side) for side in size)
    return Tensor(shape, kept) if math.prod(shape) <= kept.count else None


def _storage(item: object) -> Storage | None:
    pid = item.pid if isinstance(item, External) else None
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        return None
    _, kind, key, _, count = pid[:5]
    if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(count, int):
        return None
    item_bytes = _ITEM_BYTES.get(kind.name)
    return Storage(key, count, item_bytes) if item_bytes is not None and 0 <= count <= _MAX_COUNT else None
