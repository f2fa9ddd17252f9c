"""Messages for missing permissions, and bundles that the user may not read."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.bundle import BundleError, open_bundle
from contract.system_errors import denied, explain_denied, group_name, user_name
from service.api.auth import KeysError, read_keys
from service.request_log.lines import read_salt
from service.settings import SettingsError
from tests.support.permissions import another_user, public_folder
from tests.support.small_bundle import write_small_bundle


@pytest.fixture
def folder() -> Iterator[Path]:
    with public_folder() as path:
        yield path


def test_the_first_folder_that_refuses_is_named(folder: Path) -> None:
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    inner.parent.chmod(0o600)
    with another_user():
        message = explain_denied(inner / "file")
    me = user_name(os.getuid())
    assert f"may not enter {inner.parent} (owner {me}, mode 0600)" in message
    assert f"Run chmod go+x {inner.parent} as {me}" in message
    assert "-R" not in message


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o000])
def test_a_secret_is_never_made_readable_for_all(folder: Path, mode: int) -> None:
    secret = folder / "api keys"
    secret.write_text("shop secret-secret-secret\n" * 2)
    secret.chmod(mode)
    problems = []
    with another_user():
        for read in (read_keys, read_salt):
            with pytest.raises((KeysError, SettingsError)) as raised:
                read(secret)
            problems.append(str(raised.value))
        user, group = user_name(os.geteuid()), group_name(os.getegid())
    for problem in problems:
        assert f"may not read {secret} (owner {user_name(os.getuid())}, mode {mode:04o})" in problem
        assert f"chgrp {group} '{secret}' && chmod 0640 '{secret}', or chown {user} '{secret}'" in problem
        assert "go+" not in problem


def test_a_folder_of_request_logs_is_opened_to_a_group_only(folder: Path) -> None:
    folder.chmod(0o700)
    with another_user():
        assert f"chmod 0750 {folder}" in denied("read", folder, secret=True)


def test_a_missing_write_permission_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    (folder / "file").chmod(0o444)
    folder.chmod(0o555)
    with another_user():
        assert f"may not write {folder / 'file'} " in explain_denied(folder / "file")
        assert f"may not write in {folder} " in explain_denied(folder / "new")


def test_a_user_without_a_name_is_shown_by_its_number() -> None:
    assert user_name(3_999_999_999) == "3999999999"


@pytest.mark.parametrize("private", [".", "manifest.json", "model.onnx", "vocabulary", "vocabulary/item.marisa"])
def test_a_bundle_that_may_not_be_read_is_not_called_incomplete(folder: Path, private: str) -> None:
    bundle = write_small_bundle(folder / "bundle")
    (bundle / private).chmod(0)
    with another_user(), pytest.raises(BundleError) as raised:
        open_bundle(bundle)
    (bundle / private).chmod(0o755)
    assert f" {bundle / private} (owner {user_name(os.getuid())}, mode 0000). Run chmod -R go+rX" in str(raised.value)
    assert "ctr-export" not in str(raised.value)
