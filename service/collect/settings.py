"""The settings of ctr-collect, read from CTR_COLLECT_* environment variables. A misspelled name prevents startup."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from service.settings import COLLECT_PREFIX, PREFIX, TRAINING_VARIABLES, HttpSettings, Settings, read_variables


class CollectSettings(HttpSettings):
    """The settings of ctr-collect. The name of a quantity ends with its unit: ms, s or bytes."""

    folder: Path | None = Field(default=None, description="folder for the events; required")
    max_bytes: int = Field(
        default=10 * 1024**3,
        ge=1024**2,
        le=2**50,
        description="maximum size of the folder; if it is full, shipped files are deleted, then the server returns 503",
    )
    segment_s: float = Field(
        default=60, ge=1, le=3600, description="time after which a file is finished, so that ctr-join can read it"
    )
    max_events: int = Field(default=1000, ge=1, le=100_000, description="maximum number of events in a request")
    max_skew_s: float = Field(
        default=86_400,
        ge=300,
        le=30 * 86_400,
        description="how long before the answer, or in the future, an event may have happened by the client's clock",
    )

    port: int = Field(default=8010, ge=0, le=65_535, description="port to listen on; 0: any free port")
    max_in_flight: int = Field(
        default=1000, ge=1, le=100_000, description="maximum requests in flight; further requests get a 429"
    )
    max_body_bytes: int = Field(
        default=1024**2,
        ge=1024,
        le=64 * 1024**2,
        description="maximum size of a request's body in bytes; for a larger body, the server returns 413",
    )

    redis_url: SecretStr | None = Field(
        default=None, description="URL of a Redis server whose stream is read as well; the schemes of CTR_REDIS_URL"
    )
    redis_stream: str = Field(default="ctr-events", min_length=1, description="name of the stream")
    redis_group: str = Field(default="ctr-collect", min_length=1, description="name of the consumer group")
    redis_reclaim_s: float = Field(
        default=60,
        ge=0.1,
        le=86_400,
        description="time after which entries that another process has read, but not acknowledged, are read again",
    )
    redis_delete: bool = Field(
        default=False, description="delete entries from the stream after they have been acknowledged"
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Require a folder, and that the largest body fits into the buffer."""
        if self.folder is None:
            raise ValueError(
                f"{COLLECT_PREFIX}FOLDER is not set. Set it to a writable folder for the events, for example "
                f"{COLLECT_PREFIX}FOLDER=events."
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError(
                f"{COLLECT_PREFIX}MAX_BUFFERED_BYTES={self.max_buffered_bytes} is less than "
                f"{COLLECT_PREFIX}MAX_BODY_BYTES={self.max_body_bytes}, so the largest body would never fit into the "
                f"buffer. Raise {COLLECT_PREFIX}MAX_BUFFERED_BYTES."
            )
        return self


def read_collect_settings(environment: Mapping[str, str]) -> CollectSettings:
    """Read the settings from CTR_COLLECT_* variables. Names may be in lower case, and an empty value counts as unset.

    The settings of the scoring server are ignored, because both servers may have the same environment.

    Raises:
        SettingsError: A CTR_* name is unknown, no folder is set, or a value is out of bounds.
    """
    others = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return read_variables(CollectSettings, COLLECT_PREFIX, environment, TRAINING_VARIABLES | others)
