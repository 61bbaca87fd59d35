"""Shapes of the tensors in a pickle of torch's, and a judgement of all that the pickle asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from spica.detectors.architecture import find_state_dict, wrapper_of
from spica.detectors.pickles import Call, External, Global, Reading
from spica.detectors.refusals import EXPECTED, SAVE_STATE_DICT, few, shown, yolo_export
from spica.errors import WeightsError

Shape = tuple[int, ...]

ALLOWED_BESIDE_TENSORS = (
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)
"""What training scripts keep beside the weights (torchvision's own keeps its arguments) and can run nothing, though
torch's loader for weights alone refuses it unless it is told."""

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

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")

_HARMLESS = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
        *(f"{home}.{kind}" for home in ("builtins", "__builtin__") for kind in ("set", "bytearray", "complex")),
        *(f"torch.{kind}" for kind in ("Size", "device", "Tensor", "storage.UntypedStorage", *_ITEM_BYTES, *_DTYPES)),
        *("torch.nn.parameter.Parameter", "torch._utils._rebuild_tensor", str(_TENSOR), str(_PARAMETER)),
        *("torch._utils._rebuild_parameter_with_state", "torch.serialization._get_layout"),
        *ALLOWED_BESIDE_TENSORS,
    }
)
"""What torch's own loader for weights alone allows that checkpoints of detectors have, and ours beside it."""

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
    unknown = [wanted for wanted in reading.imports if str(wanted) not in _HARMLESS]
    if not unknown:
        return
    code = [w for w in unknown if w.module.partition(".")[0] in _RUNS_CODE or str(w) in _RUNS_CODE]
    roots = {wanted.module.partition(".")[0] for wanted in unknown}
    if code:
        what = "this file would run code when loaded; nothing of it was run"
        hint = "don't load it with anything else either; get the weights from a source you trust"
    elif "ultralytics" in roots or any(wanted.module.startswith("models.yolo") for wanted in unknown):
        what = "this is a model of Ultralytics YOLO, which is served as its ONNX export; nothing of it was run"
        hint = yolo_export(path)
    elif any(wanted.module.startswith(("torch.nn", "torchvision.")) for wanted in unknown):
        what = "this is a whole pickled model, which could run code when loaded; nothing of it was run"
        hint = _how_to_save(reading.value, path)
    else:
        what = "this file asks for more than tensors, which could run code when loaded; nothing of it was run"
        hint = _how_to_save(reading.value, path)
    raise WeightsError(
        what,
        where=str(path),
        expected=EXPECTED,
        got=f"a pickle that asks for {few([str(w) for w in code or unknown])}",
        hint=hint,
    )


def _how_to_save(value: object, path: Path) -> str:
    """The line that makes a file of the numbers alone, where what is in this one tells it."""
    if isinstance(value, Call):
        place = ".state_dict()"
    elif isinstance(value, dict):
        tensors = wrapper_of(value, is_inner=_holds_tensors)
        model = wrapper_of(value, is_inner=lambda inner: isinstance(inner, Call) and _tensor(inner) is None)
        if tensors is None and model is None:
            return SAVE_STATE_DICT
        place = f"['{tensors}']" if tensors is not None else f"['{model}'].state_dict()"
    else:
        return SAVE_STATE_DICT
    source, target = (
        shown(name).replace("'", "?").replace('"', "?") for name in (path.name, f"{path.stem}-weights.pth")
    )
    return (
        "if you trust where it comes from, for this runs what is in it, save the numbers alone where the program that "
        f"made it is installed: python -c \"import torch; torch.save(torch.load('{source}', map_location='cpu', "
        f"weights_only=False){place}, '{target}')\"; then give {target}"
    )


def _holds_tensors(inner: object) -> bool:
    return isinstance(inner, dict) and bool(inner) and all(_tensor(item) is not None for item in inner.values())


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
