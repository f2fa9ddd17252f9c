import os
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, read_settings


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in {"CTR_BUNDLE": "somewhere", **variables}.items():
        monkeypatch.setenv(name, value)
    return read_settings(os.environ)


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch)
    assert settings.bundle == Path("somewhere")
    assert (settings.host, settings.port, settings.timeout_ms, settings.max_candidates) == ("127.0.0.1", 8000, 50, 1000)
    assert settings.redis_url is None
    assert not settings.strict


def test_a_missing_bundle_is_an_error_that_says_how_to_set_one() -> None:
    with pytest.raises(SettingsError, match=r"CTR_BUNDLE is not set\. Set it to the folder of a bundle"):
        read_settings({})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("CTR_MAX_CANDIDATE", "CTR_MAX_CANDIDATES"), ("CTR_REDIS", "CTR_REDIS_URL"), ("ctr_trict", "CTR_STRICT")],
)
def test_the_error_for_a_misspelled_variable_suggests_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting.*Did you mean {nearest}[?]"):
        read(monkeypatch, **{name: "1"})


def test_the_variable_of_the_training_commands_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    read(monkeypatch, CTR_DATA="data")


def test_the_variables_of_ctr_collect_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, CTR_COLLECT_PORT="1", ctr_collect_anything="2").port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CTR_PORT", "65536"),
        ("CTR_PORT", "http"),
        ("CTR_TIMEOUT_MS", "0"),
        ("CTR_MAX_CANDIDATES", "0"),
        ("CTR_MAX_BODY_BYTES", "10"),
        ("CTR_REDIS_TIMEOUT_MS", "nan"),
        ("CTR_REDIS_TIMEOUT_MS", "0"),
        ("CTR_MAX_ROWS", "-1"),
        ("CTR_THREADS", "0"),
        ("CTR_SLOTS", "1.5"),
        ("CTR_STRICT", "perhaps"),
        ("CTR_DEVICE", "gpu"),
        ("CTR_MAX_QUEUED_ROWS", "999"),
        ("CTR_MAX_BUFFERED_BYTES", "1024"),
        ("CTR_REQUEST_LOG_SAMPLE", "nan"),
        ("CTR_REQUEST_LOG_SAMPLE", "-0.1"),
        ("CTR_REQUEST_LOG_SAMPLE", "1.1"),
        ("CTR_REQUEST_LOG_SAMPLE", "0.00009"),
        ("CTR_REQUEST_LOG_FIELDS", "some"),
        ("CTR_REQUEST_LOG_CANDIDATES", "0"),
        ("CTR_REQUEST_LOG_QUEUE_BYTES", "1000"),
    ],
)
def test_the_error_for_an_invalid_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=name) as refused:
        read(monkeypatch, **{name: value})
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_error_for_a_sample_of_less_than_one_bucket_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"9e-05 is less than 0\.0001\. Units are sampled in 10,000 buckets"):
        read(monkeypatch, CTR_REQUEST_LOG_SAMPLE="0.00009")
    assert read(monkeypatch, CTR_REQUEST_LOG_SAMPLE="0.0001").request_log_sample == 0.0001
    assert read(monkeypatch, CTR_REQUEST_LOG_SAMPLE="0").request_log_sample == 0


def test_no_representation_of_settings_shows_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, CTR_REDIS_URL="redis://:a-secret-word@host")
    assert "secret-word" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_are_read_only_from_the_given_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTR_BUNDLE", "of the process")
    monkeypatch.setenv("CTR_PORT", "1")
    settings = read_settings({"CTR_BUNDLE": "given", "ctr_timeout_ms": "70"})
    assert (settings.bundle, settings.port, settings.timeout_ms) == (Path("given"), 8000, 70)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, CTR_REDIS_URL="").redis_url is None


def test_settings_are_frozen_and_unknown_names_are_rejected() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings(bundle=Path("x")).port = 1
    with pytest.raises(ValueError, match="Extra"):
        Settings(bundle=Path("x"), prot=1)  # type: ignore[call-arg]
