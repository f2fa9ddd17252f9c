"""The operator's settings, read from CTR_* environment variables. A misspelled name prevents startup."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from contract.units import BUCKETS

PREFIX = "CTR_"
COLLECT_PREFIX = "CTR_COLLECT_"  # the settings of ctr-collect, see service/collect/settings.py
MAX_TIMEOUT_MS = 10_000  # the longest deadline that a request or CTR_TIMEOUT_MS may set
HOW_TO_SET_A_BUNDLE = (
    "Set it to the folder of a bundle, for example CTR_BUNDLE=deploy/demo, or set CTR_STORE to the folder of a store. "
    "With ctr-serve, you can also use --bundle or --store."
)
TRAINING_VARIABLES = frozenset({"CTR_DATA"})  # not settings of the service, but allowed in its environment


AnySettings = TypeVar("AnySettings", bound=BaseModel)


class SettingsError(ValueError):
    """A setting is invalid. The message names the variable and states what to set."""


class HttpSettings(BaseModel):
    """The settings that the scoring server and ctr-collect have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    max_buffered_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        le=2**40,
        description="maximum total bytes of the bodies in memory; further requests get a 429",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="maximum number of open connections; additional connections wait to be accepted",
    )
    head_timeout_ms: int = Field(
        default=5000, ge=1, le=600_000, description="maximum time for a request's head to arrive"
    )
    body_timeout_ms: int = Field(
        default=10_000, ge=1, le=600_000, description="maximum time for a request's body to arrive"
    )
    keep_alive_ms: int = Field(
        default=75_000, ge=1, le=3_600_000, description="maximum time between two requests on a connection"
    )
    drain_notice_ms: int = Field(
        default=500, ge=0, le=600_000, description="time from SIGTERM until the port is closed"
    )
    drain_ms: int = Field(
        default=15_000,
        ge=1,
        le=600_000,
        description="maximum time for requests in flight to finish after the port is closed",
    )
    api_keys_file: Path | None = Field(
        default=None, description="file with a `name key` line for each client; without it, clients need no key"
    )
    docs: bool = Field(default=True, description="serve /docs and /openapi.json")


class Settings(HttpSettings):
    """The settings of the service. Limits apply to each worker process separately.

    The name of a quantity ends with its unit: ms, s, bytes, rows (candidates) or chars.
    """

    bundle: Path | None = Field(default=None, description="folder of the bundle to serve")
    store: Path | None = Field(
        default=None, description="folder of a store (see ctr-store); its current bundle is served"
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="port to listen on; 0: any free port")
    workers: int | None = Field(
        default=None, ge=1, le=256, description="number of workers; default: one per available CPU"
    )
    threads: int = Field(default=1, ge=1, le=256, description="threads that onnxruntime uses for one run of the model")
    slots: int = Field(default=1, ge=1, le=256, description="number of concurrent runs of the model")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="device that runs the model")
    device_strict: bool = Field(default=False, description="refuse to start if CTR_DEVICE cannot be used")

    vocabulary: Literal["bundle", "redis"] = Field(
        default="bundle", description="with redis, the bundle need not contain the vocabulary, because Redis has it"
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="URL of the Redis server with the published vocabulary; Operations lists the supported schemes",
    )
    redis_timeout_ms: float = Field(
        default=10, gt=0, le=1000, description="maximum time that a request waits for Redis"
    )
    cache_tokens: int = Field(
        default=100_000, ge=0, le=100_000_000, description="maximum size of the token cache, in tokens"
    )
    cache_bytes: int = Field(
        default=16 * 1024 * 1024, ge=0, le=2**40, description="maximum size of the token cache, in bytes"
    )
    cache_unknown_s: float = Field(default=60, ge=0, le=86_400, description="how long an unknown token is cached")

    timeout_ms: int = Field(default=50, ge=1, le=MAX_TIMEOUT_MS, description="deadline for requests that set none")
    max_rows: int = Field(default=1024, ge=1, le=100_000, description="maximum rows in one run of the model")
    inline_ms: float = Field(
        default=20, ge=0, le=1000, description="with one slot, runs shorter than this do not use a separate thread"
    )
    max_queued_rows: int = Field(
        default=16_384, ge=1, le=10_000_000, description="maximum rows in the queue; further requests get a 429"
    )
    max_in_flight: int = Field(
        default=512, ge=1, le=100_000, description="maximum requests in flight; further requests get a 429"
    )
    queue_target_ms: float = Field(
        default=10,
        gt=0,
        le=1000,
        description="target for the wait in the queue; the limit on requests in flight adapts to it",
    )

    strict: bool = Field(default=False, description="refuse requests with unknown names or missing values")
    max_candidates: int = Field(default=1000, ge=1, le=100_000, description="maximum candidates in one request")
    max_fields: int = Field(default=1000, ge=1, le=100_000, description="maximum names in one object of features")
    max_token_chars: int = Field(default=1024, ge=1, le=1_000_000, description="maximum characters in one value")
    max_body_bytes: int = Field(
        default=2 * 1024 * 1024,
        ge=1024,
        le=256 * 1024 * 1024,
        description="maximum size of a request's body in bytes; for a larger body, the server returns 413",
    )

    admin_key_file: Path | None = Field(
        default=None, description="file with the key for /admin; without it, /admin does not exist"
    )
    admin_port: int | None = Field(
        default=None, ge=0, le=65_535, description="separate port for /admin and /metrics; no other port serves them"
    )
    log_values: bool = Field(default=False, description="log the feature values of requests that failed")

    request_log: Path | None = Field(default=None, description="folder for a sample of requests and their scores")
    request_log_sample: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of units whose requests are logged, rounded to a multiple of 0.0001; requests without a "
        "unit are sampled one by one",
    )
    request_log_fields: Literal["known", "all"] = Field(
        default="known", description="log only the fields that the model reads, or all fields in the request"
    )
    request_log_candidates: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="log only this number of candidates, the best ones, and one of the others at random; default: all",
    )
    request_log_segment_s: float = Field(
        default=300, ge=1, le=86_400, description="how long to write to a file of the request log before finishing it"
    )
    request_log_max_bytes: int = Field(
        default=1024**3, ge=1024**2, le=2**50, description="maximum size of the request log's folder"
    )
    request_log_queue_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024**2,
        le=2**40,
        description="maximum memory for lines that wait for the disk; further lines are dropped",
    )
    request_log_hash: str = Field(default="", description="fields to hash in the request log, separated by commas")
    request_log_salt_file: Path | None = Field(
        default=None, description="file with the salt for the hashes in the request log"
    )

    pseudonym_key_file: Path | None = Field(
        default=None, description="file with the key for fields with pseudonyms, and for the pseudonym of `unit`"
    )

    @model_validator(mode="after")
    def check_model(self) -> Self:
        """Require one of CTR_BUNDLE and CTR_STORE."""
        if self.bundle is None and self.store is None:
            raise ValueError(f"CTR_BUNDLE is not set. {HOW_TO_SET_A_BUNDLE}")
        if self.bundle is not None and self.store is not None:
            raise ValueError("CTR_BUNDLE and CTR_STORE are both set. Unset one of them.")
        return self

    @model_validator(mode="after")
    def check_dependencies(self) -> Self:
        """Require every setting that another setting depends on."""
        if self.vocabulary == "redis" and self.redis_url is None:
            raise ValueError("CTR_VOCABULARY=redis requires CTR_REDIS_URL. Set it, or unset CTR_VOCABULARY.")
        if self.request_log_hash and self.request_log_salt_file is None:
            raise ValueError(
                "CTR_REQUEST_LOG_HASH requires CTR_REQUEST_LOG_SALT_FILE: without a salt, hashed values can be "
                "guessed. Set it to a file with 16 random bytes or more."
            )
        return self

    @model_validator(mode="after")
    def check_sample(self) -> Self:
        """Require that a sample contains at least one bucket of units."""
        if 0 < self.request_log_sample < 1 / BUCKETS:
            raise ValueError(
                f"CTR_REQUEST_LOG_SAMPLE={self.request_log_sample:g} is less than {1 / BUCKETS:g}. Units are sampled "
                f"in {BUCKETS:,} buckets, so a smaller sample would be empty. Set at least {1 / BUCKETS:g}, or 0 to "
                "log nothing."
            )
        return self

    @model_validator(mode="after")
    def check_limits(self) -> Self:
        """Require that the largest request fits into the queue and into the buffer."""
        if self.max_queued_rows < self.max_candidates:
            raise ValueError(
                f"CTR_MAX_QUEUED_ROWS={self.max_queued_rows} is less than CTR_MAX_CANDIDATES={self.max_candidates}, "
                "so the largest request would never fit into the queue. Raise CTR_MAX_QUEUED_ROWS."
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError(
                f"CTR_MAX_BUFFERED_BYTES={self.max_buffered_bytes} is less than "
                f"CTR_MAX_BODY_BYTES={self.max_body_bytes}, so the largest body would never fit into the buffer. "
                "Raise CTR_MAX_BUFFERED_BYTES."
            )
        return self


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from CTR_* variables. Names may be in lower case, and an empty value counts as unset.

    CTR_COLLECT_* variables are ignored, because both servers may have the same environment.

    Raises:
        SettingsError: A CTR_* name is unknown, no bundle is set, or a value is out of bounds.
    """
    relevant = {name: value for name, value in environment.items() if not name.upper().startswith(COLLECT_PREFIX)}
    return read_variables(Settings, PREFIX, relevant, TRAINING_VARIABLES)


def read_variables(
    settings: type[AnySettings], prefix: str, environment: Mapping[str, str], ignored: Collection[str]
) -> AnySettings:
    """Read settings from variables that begin with a prefix.

    Args:
        settings: The type of the settings. A field's name in upper case follows the prefix in the variable's name.
        prefix: The prefix.
        environment: The variables.
        ignored: CTR_* variables that belong to other programs.

    Raises:
        SettingsError: A CTR_* name is unknown, or a value is invalid.
    """
    fields = {f"{prefix}{name.upper()}": name for name in settings.model_fields}
    known = sorted({*ignored, *fields})
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{name} is not a setting of this server. Did you mean {nearest}? Rename or unset it.")
    values: dict[str, Any] = {
        fields[name.upper()]: value for name, value in environment.items() if name.upper() in fields and value
    }
    try:
        return settings(**values)
    except ValidationError as error:
        raise SettingsError(first_error(error, prefix)) from None


def first_error(error: ValidationError, prefix: str = PREFIX) -> str:
    """Return pydantic's first error as one line. It names the variable but not its value, which may be a password."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    name = f"{prefix}{str(first['loc'][0]).upper()}"
    return f"{name}: {reason[0].lower()}{reason[1:]}"
