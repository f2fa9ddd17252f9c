"""What an operator may set, as CTR_* environment variables. A misspelt name stops the start."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

PREFIX = "CTR_"
MAX_TIMEOUT_MS = 10_000  # the longest deadline that a request or CTR_TIMEOUT_MS may ask for
A_BUNDLE = "set it to a bundle's folder, for example CTR_BUNDLE=deploy/demo, or CTR_STORE to a folder of ctr-store"
OTHERS = frozenset({"CTR_DATA"})  # read by the training side


class SettingsError(ValueError):
    """A setting that must not be served with. The message names the variable and what it takes."""


class Settings(BaseModel):
    """Limits are per process. Milliseconds, rows (of candidates) and bytes are in the names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path | None = Field(default=None, description="the bundle's folder")
    store: Path | None = Field(default=None, description="a folder of ctr-store, instead of one bundle")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535, description="0: any free one")
    workers: int | None = Field(default=None, ge=1, le=256, description="processes; none: as many as the CPU quota")
    threads: int = Field(default=1, ge=1, le=256, description="of onnxruntime, for one run")
    slots: int = Field(default=1, ge=1, le=256, description="runs at the same time")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="what onnxruntime runs the model on")
    device_strict: bool = Field(default=False, description="refuse to start without that device")

    vocabulary: Literal["bundle", "redis"] = Field(default="bundle", description="redis: the bundle has none")
    redis_url: SecretStr | None = None
    redis_timeout_ms: float = Field(default=10, gt=0, le=1000)
    cache_tokens: int = Field(default=100_000, ge=0, le=100_000_000, description="tokens in the in-process cache")
    cache_bytes: int = Field(default=16 * 1024 * 1024, ge=0, le=2**40, description="bytes of that cache")
    cache_unknown_s: float = Field(default=60, ge=0, le=86_400, description="how long a token stays known as unknown")

    timeout_ms: int = Field(default=50, ge=1, le=MAX_TIMEOUT_MS)
    max_rows: int = Field(default=1024, ge=1, le=100_000, description="rows in one run of the model")
    inline_ms: float = Field(default=20, ge=0, le=1000, description="shorter runs take no thread, with one slot")
    max_queued_rows: int = Field(default=16_384, ge=1, le=10_000_000, description="rows that may wait; beyond: 429")
    max_in_flight: int = Field(default=512, ge=1, le=100_000, description="requests at once, at most; beyond: 429")
    queue_target_ms: float = Field(default=10, gt=0, le=1000, description="the queueing that the limit adapts to")

    strict: bool = False
    max_candidates: int = Field(default=1000, ge=1, le=100_000)
    max_fields: int = Field(default=1000, ge=1, le=100_000, description="names in one object of features")
    max_token_chars: int = Field(default=1024, ge=1, le=1_000_000)
    max_body_bytes: int = Field(default=2 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    max_buffered_bytes: int = Field(default=64 * 1024 * 1024, ge=1024, le=2**40, description="bodies, all together")
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    head_timeout_ms: int = Field(default=5000, ge=1, le=600_000, description="for a request's head to arrive")
    body_timeout_ms: int = Field(default=10_000, ge=1, le=600_000, description="for a request's body to arrive")
    keep_alive_ms: int = Field(default=75_000, ge=1, le=3_600_000, description="of a connection without a request")
    drain_notice_ms: int = Field(default=500, ge=0, le=600_000, description="from SIGTERM to a closed port")
    drain_ms: int = Field(default=15_000, ge=1, le=600_000, description="for what is in hand after that")

    api_keys_file: Path | None = Field(default=None, description="lines `name key`; none: no key is asked for")
    admin_key_file: Path | None = Field(default=None, description="the key of /admin; none: there is no /admin")
    admin_port: int | None = Field(default=None, ge=0, le=65_535, description="/admin and /metrics there only")
    docs: bool = Field(default=True, description="/docs and /openapi.json")
    log_values: bool = Field(default=False, description="feature values may be in the log, of failed requests")

    request_log: Path | None = Field(default=None, description="a folder for a sample of requests and their scores")
    request_log_sample: float = Field(default=0.01, gt=0, le=1)
    request_log_max_bytes: int = Field(default=1024**3, ge=1024**2, le=2**50, description="of the whole folder")
    request_log_hash: str = Field(default="", description="names of fields, with commas, that are hashed in that log")
    request_log_salt_file: Path | None = Field(default=None, description="the salt for that")

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if (self.bundle is None) == (self.store is None):
            both = "CTR_BUNDLE and CTR_STORE are both set: set one of them"
            raise ValueError(f"CTR_BUNDLE is not set: {A_BUNDLE}" if self.bundle is None else both)
        return self

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.vocabulary == "redis" and self.redis_url is None:
            raise ValueError("CTR_VOCABULARY=redis, but CTR_REDIS_URL is not set: set it, or leave CTR_VOCABULARY out")
        if self.request_log_hash and self.request_log_salt_file is None:
            raise ValueError(
                "CTR_REQUEST_LOG_HASH is set, but CTR_REQUEST_LOG_SALT_FILE is not: without a salt a hash is guessed"
            )
        return self

    @model_validator(mode="after")
    def _largest_request_has_a_place(self) -> Self:
        if self.max_queued_rows < self.max_candidates:
            raise ValueError(
                f"CTR_MAX_QUEUED_ROWS ({self.max_queued_rows}) is below CTR_MAX_CANDIDATES ({self.max_candidates}): "
                "the largest request could never wait; raise it"
            )
        if self.max_buffered_bytes < self.max_body_bytes:
            raise ValueError(
                f"CTR_MAX_BUFFERED_BYTES ({self.max_buffered_bytes}) is below CTR_MAX_BODY_BYTES "
                f"({self.max_body_bytes}): the largest body could never be read; raise it"
            )
        return self


def read_settings(environment: Mapping[str, str]) -> Settings:
    """From CTR_* variables, in either case; an empty one counts as not set.

    Raises:
        SettingsError: for an unknown CTR_* name, a missing bundle, or a value out of its bounds.
    """
    _refuse_unknown_names(environment)
    fields = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    values: dict[str, Any] = {
        fields[name.upper()]: value for name, value in environment.items() if name.upper() in fields and value
    }
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = OTHERS.union(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.0)
            raise SettingsError(f"{name} is no setting of this server: did you mean {nearest[0]}? Rename or unset it")


def _sentence(error: ValidationError) -> str:
    """Pydantic's first complaint in one line. The value stays out of it: it may be a password."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return reason
    name = f"{PREFIX}{str(first['loc'][0]).upper()}"
    return f"{name}: {reason[0].lower()}{reason[1:]}"
