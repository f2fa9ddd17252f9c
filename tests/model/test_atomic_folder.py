"""Output folders appear whole or not at all, and never over somebody else's."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from model.atomic_folder import new_folder, write_whole

MARKER = "schema.json"


def write(path: Path, text: str) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text(text)


def write_half(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("half")
        raise KeyboardInterrupt


def write_while_somebody_else_does(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("new")
        path.mkdir()
        (path / "thesis.txt").write_text("mine")


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_folder_appears_with_its_parents(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "new")
    assert (tmp_path / "a" / "b" / MARKER).read_text() == "new"
    assert names(tmp_path / "a") == ["b"]


def test_nothing_is_visible_before_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", MARKER) as folder:
        (folder / MARKER).write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").is_dir()


def test_an_own_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
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


def test_a_crash_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "out")
    assert (tmp_path / "out" / MARKER).read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_crash_of_the_first_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), new_folder(tmp_path / "out", MARKER):
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_a_strangers_folder_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"out exists and holds no schema\.json"):
        write(tmp_path / "out", "new")
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_a_strangers_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="name another folder"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_that_appeared_meanwhile_is_not_destroyed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name another folder"):
        write_while_somebody_else_does(tmp_path / "out")
    assert names(tmp_path / "out") == ["thesis.txt"]


def test_a_link_is_refused_even_to_an_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="name another folder"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "real" / MARKER).read_text() == "old"


def test_a_folder_without_its_marker_is_our_own_slip(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=MARKER), new_folder(tmp_path / "out", MARKER):
        pass
    assert names(tmp_path) == []


def written_until_killed(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def left_behind(path: Path) -> list[Path]:
    return list(path.parent.glob(f".{path.name}.*"))


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = multiprocessing.get_context("fork").Process(target=written_until_killed, args=(path,))
    process.start()
    process.join()
    assert len(left_behind(path)) == 1
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("x")
    assert left_behind(path) == []
    assert [file.name for file in path.iterdir()] == [MARKER]


def killed_between_its_renames(path: Path) -> None:
    with new_folder(path, MARKER) as folder:
        (folder / MARKER).write_text("new")
        path.rename(folder.parent / "old")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_that_a_killed_process_had_moved_aside_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write(path, "good")
    process = multiprocessing.get_context("fork").Process(target=killed_between_its_renames, args=(path,))
    process.start()
    process.join()
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert (path / MARKER).read_text() == "good"
    assert left_behind(path) == []


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with new_folder(path, MARKER) as first:
        (first / MARKER).write_text("first")
        with new_folder(path, MARKER) as second:
            (second / MARKER).write_text("second")
        assert (first / MARKER).read_text() == "first"
    assert (path / MARKER).read_text() == "first"
    assert left_behind(path) == []


def test_a_file_that_the_disk_has_no_room_for_is_named_and_stays_as_it_was(tmp_path: Path) -> None:
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
