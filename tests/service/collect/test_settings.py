import subprocess
import sys
from pathlib import Path

import pytest

from service.collect.settings import read_collect_settings
from service.settings import SettingsError, read_settings
from tests.support.paths import ROOT
from tests.support.processes import without_settings

FOLDER = {"CTR_COLLECT_FOLDER": "events"}


def test_defaults_and_lower_case_names() -> None:
    settings = read_collect_settings({**FOLDER, "ctr_collect_segment_s": "5", "CTR_COLLECT_REDIS_URL": ""})
    assert (settings.folder, settings.segment_s, settings.port) == (Path("events"), 5, 8010)
    assert settings.redis_url is None


def test_a_missing_folder_is_an_error_that_says_how_to_set_one() -> None:
    with pytest.raises(SettingsError, match=r"CTR_COLLECT_FOLDER is not set\. Set it to a writable folder"):
        read_collect_settings({})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("CTR_COLLECT_FOLDR", "CTR_COLLECT_FOLDER"), ("ctr_colect_port", "CTR_COLLECT_PORT")],
)
def test_the_error_for_a_misspelled_variable_suggests_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting.*Did you mean {nearest}[?]"):
        read_collect_settings({**FOLDER, name: "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CTR_COLLECT_PORT", "65536"),
        ("CTR_COLLECT_MAX_BYTES", "10"),
        ("CTR_COLLECT_SEGMENT_S", "nan"),
        ("CTR_COLLECT_MAX_SKEW_S", "1"),
        ("CTR_COLLECT_MAX_BUFFERED_BYTES", "1024"),
    ],
)
def test_the_error_for_an_invalid_value_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_collect_settings({**FOLDER, name: value})


def test_both_servers_may_have_the_same_environment() -> None:
    environment = {**FOLDER, "CTR_BUNDLE": "somewhere", "CTR_PORT": "1", "CTR_COLLECT_PORT": "2", "CTR_DATA": "data"}
    assert read_settings(environment).port == 1
    assert read_collect_settings(environment).port == 2


def test_no_representation_of_settings_shows_the_password() -> None:
    settings = read_collect_settings({**FOLDER, "CTR_COLLECT_REDIS_URL": "redis://:a-secret-word@host"})
    assert "secret-word" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "CTR_COLLECT_FOLDER is not set"),
        ({"CTR_COLLECT_FOLDER": "/proc/nowhere"}, "CTR_COLLECT_FOLDER: /proc/nowhere is not writable"),
        (
            {**FOLDER, "CTR_COLLECT_REDIS_URL": "redis://:a-secret@host/x"},
            "CTR_COLLECT_REDIS_URL: not a valid Redis URL",
        ),
        ({**FOLDER, "CTR_COLLECT_HOST": "203.0.113.1"}, "Set CTR_COLLECT_HOST or CTR_COLLECT_PORT"),
        ({**FOLDER, "CTR_COLLECT_API_KEYS_FILE": "/nowhere"}, "/nowhere: the keys cannot be read"),
        ({**FOLDER, "CTR_COLLECT_MAX_CONNECTIONS": "100000"}, "CTR_COLLECT_MAX_CONNECTIONS=100000 needs"),
    ],
)
def test_a_start_that_fails_prints_one_line_and_exits_with_2(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    # The limit makes the case with the most connections independent of the machine.
    command = ["bash", "-c", f'ulimit -n 4096 && exec "{sys.executable}" -m service.collect']
    environment = {**without_settings(), "PYTHONPATH": str(ROOT), "CTR_COLLECT_PORT": "0", **settings}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ctr-collect: ")
    assert message in line
    assert "a-secret" not in line
