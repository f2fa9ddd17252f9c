"""What an operator may set, as CTR_* environment variables. A misspelt name stops the start."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from redis.asyncio import ConnectionPool

from service.wire import LONGEST_TIMEOUT_MS

PREFIX = "CTR_"
OTHERS = frozenset({"CTR_DATA"})  # read by the training side


class SettingsError(ValueError):
    """A setting that must not be served with. The message names the variable and what it takes."""


class Settings(BaseModel):
    """Limits are per process. Milliseconds, rows (of candidates) and bytes are in the names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(default=..., description="the bundle's folder")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535, description="0: any free one")
    redis_url: SecretStr | None = None
    redis_timeout_ms: float = Field(default=10, gt=0, le=1000)
    max_candidates: int = Field(default=1000, ge=1, le=100_000)
    max_body_bytes: int = Field(default=2 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    timeout_ms: int = Field(default=50, ge=1, le=LONGEST_TIMEOUT_MS)
    max_rows: int = Field(default=1024, ge=1, le=100_000, description="rows in one run of the model")
    max_queued_rows: int = Field(default=16_384, ge=1, le=10_000_000, description="rows that may wait; beyond: 429")
    threads: int = Field(default=1, ge=1, le=256, description="of onnxruntime, for one run")
    slots: int = Field(default=1, ge=1, le=256, description="runs at the same time")
    strict: bool = False
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="what onnxruntime runs the model on")
    device_strict: bool = Field(default=False, description="refuse to start without that device")

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_redis_url(url.get_secret_value())
        return url

    @model_validator(mode="after")
    def _largest_request_can_wait(self) -> Self:
        if self.max_queued_rows < self.max_candidates:
            raise ValueError(
                f"CTR_MAX_QUEUED_ROWS ({self.max_queued_rows}) is below CTR_MAX_CANDIDATES ({self.max_candidates}): "
                "the largest request could never wait; raise it"
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


def check_redis_url(url: str) -> None:
    """Raises ValueError, without a word of the URL: it may hold a password."""
    try:
        # Makes the connection with all its options, and does not connect.
        pool = ConnectionPool.from_url(url, protocol=2)
        connection = pool.connection_class(**pool.connection_kwargs)
        right = _has_a_number_for_db(url) and not connection.encoder.decode_responses
    except Exception:  # redis-py: ValueError, TypeError for an unknown option, RedisError, AttributeError
        right = False
    if not right:
        raise ValueError(
            "is no URL of a Redis: set it to redis://[user:password@]host:port/db (or rediss://, unix://), with the "
            "password percent-encoded, a number for db, and no option that redis-py does not know"
        )


def _has_a_number_for_db(url: str) -> bool:
    """Redis-py silently takes 0 for a path that is none."""
    split = urlsplit(url)
    db = split.path.strip("/")
    return split.scheme == "unix" or not db or (db.isascii() and db.isdecimal())


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
    if first["type"] == "missing":
        return f"{name} is not set: set it to a bundle's folder, for example {name}=deploy/demo"
    return f"{name}: {reason[0].lower()}{reason[1:]}"
