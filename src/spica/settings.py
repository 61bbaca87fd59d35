"""Every setting once: name, default, limits, help and environment variables.

Commands take their defaults and help texts from here; `spica settings` and the reference are made from here.
Names that Label Studio's own ecosystem uses (``LABEL_STUDIO_…``) are kept; ours begin with ``SPICA_``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from spica.errors import UsageError

Precision = Literal["auto", "f32", "bf16", "int8"]

OLD_VARIABLES = {"SPICA_PORT": "SPICA_LABEL_STUDIO_PORT"}
"""Environment variables that were renamed; the old name works for one release."""


def default_label_studio_data_dir() -> Path:
    """Where Label Studio keeps its data unless configured otherwise."""
    return Path(platformdirs.user_data_dir("label-studio"))


def _setting(default: Any, variables: str, description: str, **limits: Any) -> Any:
    """A field with its environment variables, separated by spaces; a callable default is called."""
    made = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**made, **limits, validation_alias=AliasChoices(*variables.split()), description=description)


def _split(value: object) -> object:
    """Names separated by commas or spaces, as the environment has them."""
    return tuple(filter(None, value.replace(",", " ").split())) if isinstance(value, str) else value


class Settings(BaseSettings):
    """The settings of one process, read from the environment when created, never at import.

    Raises:
        UsageError: a value that can't be used.
    """

    model_config = SettingsConfigDict(populate_by_name=True, env_ignore_empty=True, extra="ignore")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                "a setting has no usable value",
                where=str(first["loc"][0]) if first["loc"] else None,
                expected=first["msg"],
                hint="`spica settings` lists the settings and their environment variables",
            ) from None

    # Label Studio
    label_studio_url: str = _setting(
        "http://127.0.0.1:8080", "LABEL_STUDIO_URL LABEL_STUDIO_HOST", "Address of Label Studio."
    )
    label_studio_api_key: SecretStr | None = _setting(
        None, "LABEL_STUDIO_API_KEY LABEL_STUDIO_ACCESS_TOKEN", "Access token of Label Studio, legacy or personal."
    )
    label_studio_data_dir: Path = _setting(
        default_label_studio_data_dir,
        "LABEL_STUDIO_BASE_DATA_DIR",
        "Label Studio's data folder; uploaded images are read from its media/upload.",
    )
    local_files_document_root: Path | None = _setting(
        None,
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT LOCAL_FILES_DOCUMENT_ROOT",
        "The folder below which Label Studio serves local files; images are read from it.",
    )
    label_studio_port: int = _setting(
        8080, "SPICA_LABEL_STUDIO_PORT SPICA_PORT", "Port of the Label Studio that is started.", ge=0, le=65535
    )

    # Spica's own places
    data_dir: Path = _setting(
        lambda: Path(platformdirs.user_data_dir("spica")),
        "SPICA_DATA_DIR",
        "Spica's data folder: model versions, which of them are active, and the Label Studio of `spica up`.",
    )
    host: str = _setting("127.0.0.1", "SPICA_HOST", "Address to bind to.")
    model_port: int = _setting(8010, "SPICA_MODEL_PORT", "Port of the model server.", ge=0, le=65535)

    # What is shown
    threshold: float = _setting(
        0.6,
        "SPICA_THRESHOLD",
        "Boxes with a lower score are not shown; extra params or a control tag may say otherwise.",
        ge=0,
        le=1,
    )

    # What the network answers; changing one of these changes the model's version
    score_floor: float = _setting(
        0.05, "SPICA_SCORE_FLOOR", "Raw detections with a lower score are never kept.", ge=0, lt=1
    )
    max_detections: int = _setting(1000, "SPICA_MAX_DETECTIONS", "Most boxes in one image.", ge=1, le=10000)
    norm_eps: float = _setting(
        0.0,
        "SPICA_NORM_EPS",
        "eps of the frozen batch norm: 0 as in the training notebook, 1e-5 as in the tutorial's script.",
        ge=0,
        lt=1,
    )
    architecture: str | None = _setting(
        None,
        "SPICA_ARCHITECTURE",
        "The network of a state_dict, where the file alone does not tell: "
        "fasterrcnn_mobilenet_v3_large_320_fpn has the same tensors as fasterrcnn_mobilenet_v3_large_fpn.",
    )

    # How it is computed; changing one of these changes the version too
    precision: Precision = _setting(
        "auto",
        "SPICA_PRECISION",
        "Number format the network computes in: f32 gives torch's own boxes; auto takes the fastest that this machine "
        "has and that has passed its check.",
    )
    tile: str = _setting(
        "off",
        "SPICA_TILE",
        "Split large photographs into tiles of this many pixels; auto does so above a size, off never.",
        pattern=r"^(off|auto|[0-9]{2,5})$",
    )
    overlap: float = _setting(0.2, "SPICA_OVERLAP", "Share of a tile that overlaps its neighbour.", ge=0, le=0.5)

    # Learning
    train_after: int = _setting(
        20, "SPICA_TRAIN_AFTER", "New submissions that start a training, where Label Studio's switch is on.", ge=1
    )
    holdout_share: float = _setting(
        0.2,
        "SPICA_HOLDOUT_SHARE",
        "Share of the annotated images that is never trained on, to judge new versions by.",
        gt=0,
        lt=1,
    )
    holdout_min: int = _setting(10, "SPICA_HOLDOUT_MIN", "Fewest images that are held out.", ge=1)
    train_threads: int = _setting(
        0, "SPICA_TRAIN_THREADS", "Threads of a training; 0 for half of the processors.", ge=0
    )
    train_memory_bytes: int = _setting(
        8 * 2**30, "SPICA_TRAIN_MEMORY_BYTES", "A training that needs more memory is ended.", ge=2**30
    )
    models_bytes: int = _setting(
        20 * 2**30,
        "SPICA_MODELS_BYTES",
        "Disk space for model versions; the oldest go first, never an active or pinned one, or a parent.",
        ge=0,
    )

    # Limits
    max_pixels: int = _setting(
        150_000_000,
        "SPICA_MAX_PIXELS",
        "Larger images (width x height) are refused before they are decoded.",
        ge=1,
    )
    max_image_bytes: int = _setting(
        512 * 2**20, "SPICA_MAX_IMAGE_BYTES", "Larger image files are refused before they are read.", ge=1
    )
    max_request_bytes: int = _setting(64 * 2**20, "SPICA_MAX_REQUEST_BYTES", "Larger request bodies are refused.", ge=1)
    max_tasks: int = _setting(1000, "SPICA_MAX_TASKS", "Most tasks in one prediction request.", ge=1)
    queue_size: int = _setting(
        1024, "SPICA_QUEUE_SIZE", "Most images that wait for the network; further requests are answered 503.", ge=1
    )
    memory_bytes: int = _setting(
        64 * 2**20, "SPICA_MEMORY_BYTES", "Memory for raw detections that are remembered.", ge=0
    )
    threads: int = _setting(0, "SPICA_THREADS", "Threads of the network; 0 lets the runtime choose.", ge=0)
    media_timeout_s: float = _setting(
        30.0, "SPICA_MEDIA_TIMEOUT", "Seconds to wait for an image that comes over HTTP.", gt=0
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = _setting(
        (),
        "SPICA_ALLOWED_HOSTS",
        "Further host names under which the model server is reached, such as host.docker.internal.",
    )
    basic_auth: Annotated[SecretStr | None, NoDecode] = _setting(
        None, "SPICA_BASIC_AUTH", "user:password that Label Studio must send to the model server."
    )


def variables_of(name: str) -> list[str]:
    """The environment variables of a setting, the preferred one first; renamed ones are left out."""
    alias = Settings.model_fields[name].validation_alias
    names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
    return [each for each in names if each not in OLD_VARIABLES]


def help_for(name: str) -> str:
    """The help text of a setting with its environment variable."""
    return f"{Settings.model_fields[name].description} ({variables_of(name)[0]})"


def variable_set(name: str) -> str | None:
    """The environment variable that a setting comes from; None where none is set."""
    present = {key.upper() for key, value in os.environ.items() if value}
    alias = Settings.model_fields[name].validation_alias
    names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
    return next((each for each in names if each in present), None)
