"""ctr-store: whatever happens to a store, its current version is either the old one or the new one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from contract.bundle import open_bundle, write_manifest
from contract.calibration import Calibration
from contract.store import StoreError, read_pointer
from service.models import verify
from service.models.store import (
    activate,
    add,
    current_bundle,
    how_to_activate,
    main,
    remove,
    rollback,
    servable_bundles,
)
from tests.support.graphs import needs_kernel
from tests.support.paths import ROOT
from tests.support.permissions import another_user, public_folder
from tests.support.processes import with_wrong_golden
from tests.support.small_bundle import write_small_bundle


@pytest.fixture
def store(bundles: list[Path], tmp_path: Path) -> Path:
    """A store with all three bundles. The one that was added last is current."""
    for bundle in bundles:
        assert main(["add", str(tmp_path / "store"), str(bundle), "--activate"]) == 0
    return tmp_path / "store"


@pytest.fixture
def public_store(bundles: list[Path]) -> Iterator[Path]:
    """A store with two versions, in a folder that every user may read."""
    with public_folder() as folder:
        for bundle in bundles[:2]:
            assert main(["add", str(folder / "store"), str(bundle), "--activate"]) == 0
        yield folder / "store"


def damage(path: Path) -> None:
    """Overwrite a read-only file in the store."""
    path.chmod(0o644)
    path.write_bytes(b"{")


def test_a_bundle_with_wrong_golden_answers_is_not_activated(
    bundles: list[Path], versions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    wrong = with_wrong_golden(bundles[1], tmp_path / "wrong")
    assert main(["add", store, str(bundles[0]), "--activate"]) == 0
    assert main(["add", store, str(wrong), "--activate"]) == 2
    error = capsys.readouterr().err
    assert "the answers to the golden requests differ from the exporter's by 0.0" in error
    assert "To activate it in spite of this, add --force" in error
    assert current_bundle(tmp_path / "store").name == versions[0]
    assert main(["add", store, str(wrong), "--activate", "--force"]) == 0
    assert current_bundle(tmp_path / "store").name == open_bundle(wrong).manifest.version


def test_a_bundle_whose_golden_requests_cannot_be_read_is_not_activated(
    bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(bundles[0], tmp_path / "broken"))
    (broken / "golden.jsonl").write_text("{}\n")
    write_manifest(broken, "broken", 1, {}, Calibration())
    assert main(["add", str(tmp_path / "store"), str(broken), "--activate"]) == 2
    assert "golden.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def with_infinite_weights(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"\xff" * (folder / "weights.bin").stat().st_size)


def with_other_sizes(folder: Path) -> None:
    """Replace kernel.onnx with a graph that can be opened, but not run."""
    graph = onnx.load(folder / "kernel.onnx", load_external_data=False)
    sizes = next(tensor for tensor in graph.graph.initializer if tensor.name == "sizes")
    sizes.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(sizes) * -1, "sizes"))
    onnx.save(graph, folder / "kernel.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_infinite_weights, "the model's logit is not finite"),
        pytest.param(with_other_sizes, "sizes: a number is out of range", marks=needs_kernel),
    ],
)
def test_a_bundle_whose_graph_cannot_run_is_not_activated(
    change: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(ROOT / "deploy" / "demo", tmp_path / "broken"))
    change(broken)
    write_manifest(broken, "broken", 1, {}, Calibration())
    assert main(["add", str(tmp_path / "store"), str(broken), "--activate"]) == 2
    assert message in capsys.readouterr().err
    assert verify.main([str(broken)]) == 2
    assert f"ctr-verify: bundle {broken}: a golden request cannot be scored (" in (error := capsys.readouterr().err)
    assert message in error


def test_the_way_to_activate_is_a_rollback_only_if_it_leads_there(store: Path, versions: list[str]) -> None:
    assert how_to_activate(store, versions[1]) == f"ctr-store rollback {store}"
    assert how_to_activate(store, versions[0]) == f"ctr-store activate {store} {versions[0][:12]}"
    remove(store, versions[1])
    assert how_to_activate(store, versions[0]) == f"ctr-store rollback {store}"
    assert rollback(store) == versions[0]
    (store / "current").write_text("{")
    assert how_to_activate(store, versions[2]) == f"ctr-store activate {store} {versions[2][:12]}"


def test_activated_version_is_current(store: Path, versions: list[str]) -> None:
    assert current_bundle(store).name == versions[2]
    assert open_bundle(current_bundle(store)).manifest.version == versions[2]
    assert activate(store, versions[0][:8]) == versions[0]
    assert current_bundle(store).name == versions[0]


def test_list_shows_the_versions_and_which_one_is_current(
    store: Path, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["list", str(store)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == set(versions)
    assert lines[versions[2]].endswith("b2  current")
    assert lines[versions[1]].endswith("b1  previous 1")
    assert lines[versions[0]].endswith("b0  previous 2")


def test_rollback_goes_back_one_version_at_a_time(store: Path, versions: list[str]) -> None:
    assert rollback(store) == versions[1]
    assert rollback(store) == versions[0]
    with pytest.raises(StoreError, match="no previous version"):
        rollback(store)
    assert current_bundle(store).name == versions[0]


def test_rollback_skips_removed_versions(store: Path, versions: list[str]) -> None:
    shutil.rmtree(store / "versions" / versions[1])
    assert rollback(store) == versions[0]


def test_adding_and_activating_twice_changes_nothing(
    store: Path, bundles: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = read_pointer(store)
    assert main(["add", str(store), str(bundles[2]), "--activate"]) == 0
    assert "already there: b2" in capsys.readouterr().out
    assert read_pointer(store) == pointer


def test_damaged_bundle_is_not_added(bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = Path(shutil.copytree(bundles[0], tmp_path / "damaged"))
    (damaged / "model.onnx").write_bytes(b"")
    assert main(["add", str(tmp_path / "store"), str(damaged)]) == 2
    assert "model.onnx was changed after the export" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_activating_the_current_version_makes_servers_read_the_store_again(store: Path, versions: list[str]) -> None:
    """The version may have been refused, and repaired since."""
    before, inode = read_pointer(store), (store / "current").stat().st_ino
    os.link(store / "current", store / "keeps-the-inode-in-use")
    assert activate(store, versions[2]) == versions[2]
    assert read_pointer(store) == before
    assert (store / "current").stat().st_ino != inode


def test_a_version_that_was_current_twice_is_tried_only_once(store: Path, versions: list[str]) -> None:
    activate(store, versions[0])
    activate(store, versions[2])
    current, folders = servable_bundles(store)
    assert current == versions[2]
    assert [folder.name for folder in folders] == [versions[2], versions[0], versions[1]]


def test_adding_again_repairs_a_damaged_version(store: Path, bundles: list[Path], versions: list[str]) -> None:
    damage(current_bundle(store) / "model.onnx")
    assert add(store, bundles[2])[1]
    assert open_bundle(current_bundle(store)).manifest.version == versions[2]
    assert sorted(path.name for path in store.iterdir()) == ["current", "lock", "versions"]


def test_full_disk_is_reported_and_leaves_nothing_behind(bundles: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-B", "-m", "service.models.store", "add", str(tmp_path / "store"), str(bundles[0])]
    added = subprocess.run(
        ["bash", "-c", f"ulimit -f 4; exec {shlex.join(command)}"], capture_output=True, text=True, timeout=60
    )
    assert added.returncode == 2
    assert f"{bundles[0]} cannot be copied into the store: [Errno 27] File too large" in added.stderr
    assert len(added.stderr.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["lock", "versions"]


def test_damaged_version_does_not_hide_the_others(
    store: Path, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = min(versions)
    damage(store / "versions" / first / "manifest.json")
    capsys.readouterr()
    assert main(["list", str(store)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == set(versions)
    assert [version for version, line in lines.items() if "  damaged: " in line] == [first]


def test_version_that_is_not_current_can_be_removed(store: Path, versions: list[str]) -> None:
    assert remove(store, versions[0][:8]) == versions[0]
    assert sorted(path.name for path in (store / "versions").iterdir()) == sorted(versions[1:])
    assert rollback(store) == versions[1]
    with pytest.raises(StoreError, match="is current: activate another version first"):
        remove(store, versions[1])


def test_leftovers_of_a_crash_are_not_listed_and_are_deleted_by_the_next_add(store: Path, bundles: list[Path]) -> None:
    left = store / ".unfinished-x"
    shutil.copytree(bundles[0], left / ("0" * 64))
    assert main(["list", str(store)]) == 0
    add(store, bundles[0])
    assert not left.exists()


def test_links_and_files_among_leftovers_are_deleted_safely(store: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (store / ".unfinished-x").symlink_to(precious)
    (store / ".unfinished-y").write_text("")
    rollback(store)
    assert precious.is_dir()
    assert sorted(path.name for path in store.iterdir()) == ["current", "lock", "versions"]


def test_target_of_a_linked_lock_is_not_truncated(store: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (store / "lock").unlink()
    (store / "lock").symlink_to(tmp_path / "precious")
    rollback(store)
    assert (tmp_path / "precious").read_text() == "mine"


def test_concurrent_adds_lose_nothing(bundles: list[Path], versions: list[str], tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=main, args=(["add", str(tmp_path), str(bundle), "--activate"],)) for bundle in bundles
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    pointer = read_pointer(tmp_path)
    assert pointer is not None
    assert {pointer.version, *pointer.previous} == set(versions)


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ("", "activate a version again"),
        ('{"version": "../../etc", "previous": []}', "which is not a version"),
        (json.dumps({"version": "a" * 64, "previous": ["../x"]}), "which is not a version"),
        (json.dumps({"version": "a" * 64, "previous": []}), "is missing: activate another version"),
        ('{"version": 1}', "activate a version again"),
    ],
)
def test_pointer_never_points_outside_the_store(store: Path, versions: list[str], pointer: str, message: str) -> None:
    (store / "current").write_text(pointer)
    with pytest.raises(StoreError, match=message):
        current_bundle(store)
    activate(store, versions[1])
    assert current_bundle(store).name == versions[1]


def test_versions_are_listed_even_if_the_pointer_is_damaged(
    store: Path, versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "current").write_text("")
    capsys.readouterr()
    assert main(["list", str(store)]) == 2
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == sorted(versions)
    assert "activate a version again" in shown.err


def test_link_is_not_a_version_until_the_bundle_is_added_again(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    folder = store / "versions" / versions[2]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is missing"):
        current_bundle(store)
    with pytest.raises(StoreError, match="no version starts with"):
        activate(store, versions[2])
    assert add(store, bundles[2])[1]
    assert current_bundle(store) == folder
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "{}/none"], "is not a store"),
        (["rollback", "{}/none"], "is not a store"),
        (["activate", "{}/none", "abcdef"], "is not a store"),
        (["activate", "{}", "abc"], "too short"),
        (["activate", "{}", "zzzzzzzz"], "no version starts with 'zzzzzzzz'"),
        (["add", "{}", "/nowhere"], "/nowhere"),
    ],
)
def test_error_is_a_single_line(
    store: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([argument.format(store) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ctr-store: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (store / "none").exists()


def test_store_without_a_pointer_has_no_current_version(bundles: list[Path], tmp_path: Path) -> None:
    add(tmp_path, bundles[0])
    with pytest.raises(StoreError, match="has no current version"):
        current_bundle(tmp_path)


def test_copies_are_readable_by_everyone_and_writable_by_nobody(bundles: list[Path], tmp_path: Path) -> None:
    private = Path(shutil.copytree(bundles[0], tmp_path / "private"))
    for path in (private, *private.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    store = tmp_path / "new" / "store"
    umask = os.umask(0o077)
    try:
        assert main(["add", str(store), str(private), "--activate"]) == 0
    finally:
        os.umask(umask)
    paths = [store, store / "versions", current_bundle(store), *current_bundle(store).rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o444}
    assert (store / "current").stat().st_mode & 0o777 == 0o644
    add(store, bundles[1])
    remove(store, open_bundle(bundles[1]).manifest.version)
    assert len(list((store / "versions").iterdir())) == 1


@pytest.mark.parametrize("command", ["list", "add", "activate", "rollback", "remove"])
@pytest.mark.parametrize("private", [".", "versions", "current"])
def test_a_missing_permission_is_a_single_line_that_names_the_user_and_the_path(
    public_store: Path, bundles: list[Path], capsys: pytest.CaptureFixture[str], command: str, private: str
) -> None:
    version = current_bundle(public_store).name
    (public_store / private).chmod(0)
    arguments = {"add": [str(bundles[0])], "activate": [version], "remove": [version]}.get(command, [])
    capsys.readouterr()
    with another_user():
        assert main([command, str(public_store), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(
        r"^ctr-store: .*user \S+ may not (enter|read|write|write in) \S+ \(owner \S+, mode 0\d{3}\)\. ", error
    )
    assert str(public_store) in error or command == "add"  # The bundle to add is private too.
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("private", [".", "versions", "current"])
def test_a_server_reports_a_store_that_it_may_not_read(public_store: Path, private: str) -> None:
    (public_store / private).chmod(0)
    with another_user(), pytest.raises(StoreError, match=r"user \S+ may not (enter|read) \S+ \(owner \S+, mode 0000"):
        current_bundle(public_store)


def test_bundle_with_warnings_is_added_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warnings = ["the model is worse than the base rate on valid.", "the model is worse than the base rate on test."]
    bundle = write_small_bundle(tmp_path / "bundle", warnings=warnings)
    assert main(["add", str(tmp_path / "store"), str(bundle), "--activate"]) == 2
    error = capsys.readouterr().err
    assert error == f"ctr-store: {bundle} has warnings: {' Also, '.join(warnings)} To add it anyway, use --force\n"
    assert not (tmp_path / "store").exists()
    assert main(["add", str(tmp_path / "store"), str(bundle), "--activate", "--force"]) == 0
    assert open_bundle(current_bundle(tmp_path / "store")).manifest.warnings == tuple(warnings)
