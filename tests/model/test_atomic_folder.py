"""Output folders are written atomically, and replace only folders of the same kind."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from model.atomic_folder import LOCK, new_file, new_folder, write_whole

MARKER = "schema.json"


def write(path: Path, text: str) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text(text)


def write_half(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("half")
        raise KeyboardInterrupt


def write_half_of_a_file(path: Path) -> None:
    with new_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt


def write_while_another_process_does(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("new")
        path.mkdir()
        (path / "thesis.txt").write_text("mine")


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "new")
    assert (tmp_path / "a" / "b" / MARKER).read_text() == "new"
    assert names(tmp_path / "a") == ["b"]


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", MARKER) as folder:
        (folder / MARKER).write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").is_dir()


def test_a_folder_of_the_same_kind_is_replaced_completely(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "more").write_text("old")
    write(tmp_path / "out", "new")
    assert names(tmp_path / "out") == [MARKER]
    assert (tmp_path / "out" / MARKER).read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert names(tmp_path / "out") == [MARKER]


def test_a_crash_leaves_the_old_folder_and_no_temporary_files(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "out")
    assert (tmp_path / "out" / MARKER).read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_crash_without_an_old_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), new_folder(tmp_path / "out", MARKER):
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_another_kind_of_folder_is_rejected_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out exists and has no schema\.json"):
        write(tmp_path / "out", "new")
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="Choose another folder"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_appears_during_the_block_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Choose another folder"):
        write_while_another_process_does(tmp_path / "out")
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_a_link_is_rejected_even_if_it_points_to_a_folder_of_the_same_kind(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="Choose another folder"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "real" / MARKER).read_text() == "old"


def test_a_folder_without_its_marker_is_an_assertion_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=MARKER), new_folder(tmp_path / "out", MARKER):
        pass
    assert names(tmp_path) == []


def write_until_killed(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def leftovers(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.*"))


def test_leftovers_of_a_killed_process_are_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = multiprocessing.get_context("fork").Process(target=write_until_killed, args=(path,))
    process.start()
    process.join()
    assert len(leftovers(path)) == 1
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("x")
    assert leftovers(path) == []
    assert [file.name for file in path.iterdir()] == [MARKER]


def be_killed_between_renames(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("new")
        path.rename(folder.parent / "old")
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_old_folder_of_a_killed_process_is_moved_back(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write(path, "good")
    process = multiprocessing.get_context("fork").Process(target=be_killed_between_renames, args=(path,))
    process.start()
    process.join()
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert (path / MARKER).read_text() == "good"
    assert leftovers(path) == []


def test_the_temporary_folder_of_a_running_process_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with new_folder(path, MARKER) as first:
        (first / MARKER).write_text("first")
        with new_folder(path, MARKER) as second:
            (second / MARKER).write_text("second")
        assert (first / MARKER).read_text() == "first"
    assert (path / MARKER).read_text() == "first"
    assert leftovers(path) == []


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_whole(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match=r"report\.md"):
            write_whole(path, b"new" * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["report.md"]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "scores.csv"
    with pytest.raises(KeyboardInterrupt):
        write_half_of_a_file(target)
    assert names(tmp_path / "a") == []
    left_behind = tmp_path / "a" / ".scores.csv.killed"
    left_behind.mkdir()
    (left_behind / LOCK).touch()
    for text in ("one", "two"):
        with new_file(target) as file:
            file.write_text(text)
        assert target.read_text() == text
        assert names(tmp_path / "a") == ["scores.csv"]
