"""Every setting once: name, default, help and environment variable.

Commands take their defaults and help texts from here, the documentation's table is generated from here.
The names that Label Studio's own ecosystem uses (``LABEL_STUDIO_…``) are kept; ours begin with ``SPICA_``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from spica.errors import UsageError

Precision = Literal["auto", "f32", "bf16", "int8"]


def default_label_studio_data_dir() -> Path:
    """Where Label Studio keeps its data when it is told nothing else."""
    return Path(platformdirs.user_data_dir("label-studio"))


def _env(*names: str) -> AliasChoices:
    return AliasChoices(*names)


def _split(value: object) -> object:
    """Names separated by commas, as the environment has them."""
    return tuple(filter(None, value.replace(",", " ").split())) if isinstance(value, str) else value


class Settings(BaseSettings):
    """The settings of one process, read from the environment when created, never at import.

    Raises:
        UsageError: one has no usable value.
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
                hint="see `spica --help` for the settings and their environment variables",
            ) from None

    # Label Studio
    label_studio_url: str = Field(
        default="http://127.0.0.1:8080",
        validation_alias=_env("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST"),
        description="Address of Label Studio.",
    )
    label_studio_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=_env("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN"),
        description="Access token of Label Studio, legacy or personal.",
    )
    label_studio_data_dir: Path = Field(
        default_factory=default_label_studio_data_dir,
        validation_alias=_env("LABEL_STUDIO_BASE_DATA_DIR"),
        description="Label Studio's data folder; uploaded images are read from its media/upload.",
    )
    local_files_serving_enabled: bool = Field(
        default=False,
        validation_alias=_env("LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED", "LOCAL_FILES_SERVING_ENABLED"),
        description="Whether Label Studio serves local files, as its own process was told.",
    )
    local_files_document_root: Path | None = Field(
        default=None,
        validation_alias=_env("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", "LOCAL_FILES_DOCUMENT_ROOT"),
        description="The folder below which Label Studio serves local files; images are read from it.",
    )

    # Spica's own places
    data_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("spica")),
        validation_alias=_env("SPICA_DATA_DIR"),
        description="Folder of the converted models and, for `spica up`, of Label Studio's data.",
    )
    host: str = Field(default="127.0.0.1", validation_alias=_env("SPICA_HOST"), description="Address to bind to.")
    port: int = Field(
        default=8080, ge=0, le=65535, validation_alias=_env("SPICA_PORT"), description="Port of Label Studio."
    )
    model_port: int = Field(
        default=8010, ge=0, le=65535, validation_alias=_env("SPICA_MODEL_PORT"), description="Port of the model server."
    )

    # What is shown
    threshold: float = Field(
        default=0.6,
        ge=0,
        le=1,
        validation_alias=_env("SPICA_THRESHOLD"),
        description="Boxes with a lower score are not shown; extra params or a control tag may say otherwise.",
    )

    # What the network answers; changing one of these changes the model's version
    score_floor: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        validation_alias=_env("SPICA_SCORE_FLOOR"),
        description="Raw detections with a lower score are never kept.",
    )
    max_detections: int = Field(
        default=1000,
        ge=1,
        le=10000,
        validation_alias=_env("SPICA_MAX_DETECTIONS"),
        description="At most so many boxes an image.",
    )
    norm_eps: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        validation_alias=_env("SPICA_NORM_EPS"),
        description="eps of the frozen batch norm: 0 as in the training notebook, 1e-5 as in the tutorial's script.",
    )

    architecture: str | None = Field(
        default=None,
        validation_alias=_env("SPICA_ARCHITECTURE"),
        description="The network of a state_dict, where the file alone does not tell: "
        "fasterrcnn_mobilenet_v3_large_320_fpn has the same tensors as fasterrcnn_mobilenet_v3_large_fpn.",
    )

    # How it is computed; changing one of these changes the version too
    precision: Precision = Field(
        default="auto",
        validation_alias=_env("SPICA_PRECISION"),
        description="Arithmetic of the network: f32 gives torch's own boxes; auto takes the fastest that this machine "
        "has and that has passed its check.",
    )
    tile: str = Field(
        default="off",
        pattern=r"^(off|auto|[0-9]{2,5})$",
        validation_alias=_env("SPICA_TILE"),
        description="Look at large photographs in tiles of so many pixels; auto does so above a size, off never.",
    )
    overlap: float = Field(
        default=0.2,
        ge=0,
        le=0.5,
        validation_alias=_env("SPICA_OVERLAP"),
        description="Share of a tile that its neighbour sees too.",
    )

    # Learning
    train_after: int = Field(
        default=20,
        ge=1,
        validation_alias=_env("SPICA_TRAIN_AFTER"),
        description="Train after so many new submissions, where Label Studio's switch is on.",
    )
    holdout_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        validation_alias=_env("SPICA_HOLDOUT_SHARE"),
        description="Share of the annotated images that is never trained on, to judge new versions by.",
    )
    holdout_min: int = Field(
        default=10,
        ge=1,
        validation_alias=_env("SPICA_HOLDOUT_MIN"),
        description="At least so many images are held out.",
    )
    train_threads: int = Field(
        default=0,
        ge=0,
        validation_alias=_env("SPICA_TRAIN_THREADS"),
        description="Threads of a training; 0 for half of the processors.",
    )
    train_memory_bytes: int = Field(
        default=8 * 2**30,
        ge=2**30,
        validation_alias=_env("SPICA_TRAIN_MEMORY_BYTES"),
        description="A training that needs more memory is ended.",
    )
    models_bytes: int = Field(
        default=20 * 2**30,
        ge=0,
        validation_alias=_env("SPICA_MODELS_BYTES"),
        description="Disk space for model versions; the oldest go first, never an active or pinned one, or a parent.",
    )

    # Limits
    max_pixels: int = Field(
        default=150_000_000,
        ge=1,
        validation_alias=_env("SPICA_MAX_PIXELS"),
        description="Larger images (width x height) are refused before they are decoded.",
    )
    max_image_bytes: int = Field(
        default=512 * 2**20,
        ge=1,
        validation_alias=_env("SPICA_MAX_IMAGE_BYTES"),
        description="Larger image files are refused before they are read.",
    )
    max_request_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        validation_alias=_env("SPICA_MAX_REQUEST_BYTES"),
        description="Larger request bodies are refused.",
    )
    max_tasks: int = Field(
        default=1000,
        ge=1,
        validation_alias=_env("SPICA_MAX_TASKS"),
        description="At most so many tasks in one prediction request.",
    )
    queue_size: int = Field(
        default=1024,
        ge=1,
        validation_alias=_env("SPICA_QUEUE_SIZE"),
        description="At most so many images wait for the network; further requests are answered 503.",
    )
    memory_bytes: int = Field(
        default=64 * 2**20,
        ge=0,
        validation_alias=_env("SPICA_MEMORY_BYTES"),
        description="Memory for raw detections that are remembered.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        validation_alias=_env("SPICA_THREADS"),
        description="Threads of the network; 0 lets the runtime choose.",
    )
    media_timeout_s: float = Field(
        default=30.0,
        gt=0,
        validation_alias=_env("SPICA_MEDIA_TIMEOUT"),
        description="Seconds to wait for an image that comes over HTTP.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = Field(
        default=(),
        validation_alias=_env("SPICA_ALLOWED_HOSTS"),
        description="Further host names under which the model server is reached, such as host.docker.internal.",
    )
    basic_auth: Annotated[SecretStr | None, NoDecode] = Field(
        default=None,
        validation_alias=_env("SPICA_BASIC_AUTH"),
        description="user:password that Label Studio must send to the model server.",
    )


def help_for(name: str) -> str:
    """The help text of a setting, its environment variable included."""
    field = Settings.model_fields[name]
    alias = field.validation_alias
    names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
    return f"{field.description} ({names[0]})" if names else str(field.description)
