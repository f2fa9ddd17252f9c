"""ctr-store and reports of ctr-gate: which versions get into a store, and which become current."""

import json
import os
from pathlib import Path

import pytest

from contract.bundle import open_bundle
from contract.gate import FORMAT, Verdict
from service.models.store import current_bundle, main

Outputs = pytest.CaptureFixture[str]


@pytest.fixture
def store(bundles: list[Path], tmp_path: Path) -> Path:
    """A store that demands reports and serves the first bundle."""
    store = tmp_path / "store"
    assert run("add", store, bundles[0], "--activate") == 0
    assert run("require-gate", store, "on") == 0
    return store


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def report(path: Path, new: str, old: str, verdict: Verdict = "pass", format: int = FORMAT) -> Path:
    """Write a report, with members that only people read."""
    reasons = [] if verdict == "pass" else ["predicted / observed is 1.3000."]
    content = {"format": format, "verdict": verdict, "reasons": reasons, "new": new, "old": old, "figures": {"rows": 3}}
    path.write_text(json.dumps(content))
    return path


def test_the_first_version_of_a_store_needs_no_report(bundles: list[Path], versions: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert run("add", store, bundles[0]) == 0
    assert run("require-gate", store, "on") == 0
    assert run("activate", store, versions[0]) == 0
    assert current_bundle(store).name == versions[0]


def test_a_version_without_a_report_is_refused(
    store: Path, bundles: list[Path], versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", store, bundles[1], "--activate") == 2
    error = capsys.readouterr().err
    assert f"accepts only versions that passed ctr-gate: add {versions[1][:12]} with --gate REPORT.json" in error
    assert sorted(path.name for path in (store / "versions").iterdir()) == [versions[0]]
    assert current_bundle(store).name == versions[0]


def test_a_version_that_passed_becomes_current_and_its_report_is_kept(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate, "--activate") == 0
    assert current_bundle(store).name == versions[1]
    assert (store / "gates" / f"{versions[1]}.json").read_bytes() == gate.read_bytes()
    capsys.readouterr()
    assert run("list", store) == 0
    lines = {line[:64]: line for line in capsys.readouterr().out.splitlines()}
    assert lines[versions[1]].endswith(f"b1  current  gate: pass, against {versions[0][:12]}")
    assert lines[versions[0]].endswith("b0  previous 1")
    open_bundle(store / "versions" / versions[1])  # the report has not changed the bundle


@pytest.mark.parametrize(
    ("new", "old", "verdict", "words"),
    [
        (2, 0, "pass", "the report is about {2}, not about this version, {1}"),
        ("run:shop", 0, "pass", "the report is about a run (shop), not about this version"),
        (
            1,
            2,
            "pass",
            "the report compares with {2}, but the current version is {0}. Compare with the current",
        ),
        (1, "run:shop", "pass", "the report compares with a run (shop), but the current version is {0}"),
        (1, 0, "fail", "the verdict is fail: predicted / observed is 1.3000"),
        (1, 0, "not enough clicks", "the verdict is not enough clicks: predicted / observed is 1.3000"),
    ],
)
@pytest.mark.parametrize("setting", ["on", "off"])
def test_a_report_that_does_not_let_the_version_in_is_refused_with_the_reason(
    new: int | str,
    old: int | str,
    verdict: Verdict,
    words: str,
    setting: str,
    store: Path,
    bundles: list[Path],
    versions: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("require-gate", store, setting) == 0
    names = [name if isinstance(name, str) else versions[name] for name in (new, old)]
    gate = report(tmp_path / "gate.json", names[0], names[1], verdict)
    capsys.readouterr()
    assert run("add", store, bundles[1], "--gate", gate, "--activate") == 2
    expected = words.format(*(version[:12] for version in versions))
    assert f"{gate}: {expected}" in capsys.readouterr().err
    assert not (store / "versions" / versions[1]).exists()
    assert not (store / "gates").exists()

    assert run("add", store, bundles[1], "--gate", gate, "--activate", "--force") == 0
    assert f"added because of --force, although {gate}: {expected}" in capsys.readouterr().err
    assert current_bundle(store).name == versions[1]
    assert not (store / "gates").exists()


@pytest.mark.parametrize(("content", "words"), [("{}", "is not a report of ctr-gate"), (None, "No such file")])
def test_a_file_that_is_not_a_report_is_refused(
    content: str | None,
    words: str,
    store: Path,
    bundles: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "gate.json").write_text(content)
    assert run("add", store, bundles[1], "--gate", tmp_path / "gate.json") == 2
    assert words in capsys.readouterr().err


def test_a_report_is_stale_once_another_version_is_current(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        gate = report(tmp_path / "gate.json", versions[number], versions[0])
        assert run("add", store, bundles[number], "--gate", gate) == 0
    assert run("activate", store, versions[1]) == 0
    assert run("activate", store, versions[2]) == 2
    assert f"compares with {versions[0][:12]}, but the current version is {versions[1][:12]}" in capsys.readouterr().err
    gate = report(tmp_path / "gate.json", versions[2], versions[1])
    assert run("add", store, bundles[2], "--gate", gate) == 0  # already there, but the report is new
    assert run("activate", store, versions[2]) == 0
    assert current_bundle(store).name == versions[2]


def test_an_earlier_version_can_always_be_served_again(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate, "--activate") == 0
    assert run("rollback", store) == 0
    assert current_bundle(store).name == versions[0]
    assert run("activate", store, versions[1]) == 0
    assert run("activate", store, versions[0]) == 0
    assert current_bundle(store).name == versions[0]


def test_a_damaged_copy_of_the_current_version_or_an_earlier_one_is_repaired_without_a_report(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate, "--activate") == 0
    for number in (0, 1):
        (store / "versions" / versions[number] / "manifest.json").unlink()
        assert run("add", store, bundles[number]) == 0
        open_bundle(store / "versions" / versions[number])
    assert run("add", store, bundles[2]) == 2


def test_a_version_that_was_added_before_the_setting_needs_a_report_or_force(
    store: Path, bundles: list[Path], versions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("require-gate", store, "off") == 0
    assert run("add", store, bundles[1]) == 0
    assert run("require-gate", store, "on") == 0
    capsys.readouterr()
    assert run("activate", store, versions[1]) == 2
    assert f"{versions[1][:12]} has no report: add it again with --gate REPORT.json" in capsys.readouterr().err
    assert run("activate", store, versions[1], "--force") == 0
    assert f"activated because of --force, although {store} activates only versions" in capsys.readouterr().err
    assert current_bundle(store).name == versions[1]


def test_removing_a_version_removes_its_report(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate) == 0
    assert run("remove", store, versions[1]) == 0
    assert list((store / "gates").iterdir()) == []


def test_damaged_settings_and_pointers_do_not_open_the_gate(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate) == 0
    (store / "settings.json").write_text("{")
    capsys.readouterr()
    assert run("activate", store, versions[1]) == 2
    assert f"write it again with ctr-store require-gate {store} on" in capsys.readouterr().err
    assert run("require-gate", store, "on") == 0
    (store / "current").write_text("{")
    assert run("activate", store, versions[1]) == 2
    assert (
        "is damaged, so the current version is not known. Make the right version current again with"
        in capsys.readouterr().err
    )
    assert run("add", store, bundles[2]) == 2
    gate = report(tmp_path / "gate.json", versions[2], versions[0])
    capsys.readouterr()
    assert run("add", store, bundles[2], "--gate", gate) == 2
    assert f"{store}/current is damaged, so the current version is not known" in capsys.readouterr().err
    assert run("activate", store, versions[1], "--force") == 0
    assert current_bundle(store).name == versions[1]


def test_named_pipes_do_not_block_a_store(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    assert run("add", store, bundles[1], "--gate", gate) == 0
    os.mkfifo(tmp_path / "pipe.json")
    assert run("add", store, bundles[2], "--gate", tmp_path / "pipe.json") == 2
    assert "pipe.json is not a regular file" in capsys.readouterr().err
    for path in (store / "gates" / f"{versions[1]}.json", store / "settings.json"):
        path.unlink()
        os.mkfifo(path)
        assert run("activate", store, versions[1]) == 2
        assert f"{path} is not a regular file" in capsys.readouterr().err
    assert run("list", store) == 0
    assert "gate: damaged" in capsys.readouterr().out
    (store / "current").unlink()
    os.mkfifo(store / "current")
    assert run("list", store) == 2
    assert f"{store / 'current'} is not a regular file" in capsys.readouterr().err


def test_huge_reports_are_not_read(tmp_path: Path, store: Path, bundles: list[Path], capsys: Outputs) -> None:
    (tmp_path / "gate.json").touch()
    os.truncate(tmp_path / "gate.json", 2**40)
    assert run("add", store, bundles[1], "--gate", tmp_path / "gate.json") == 2
    assert "gate.json is larger than 268,435,456 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["settings.json", "current"])
def test_links_to_missing_files_do_not_open_the_gate(
    name: str, store: Path, bundles: list[Path], tmp_path: Path, capsys: Outputs
) -> None:
    """For example, the target is on a disk that is not mounted."""
    (store / name).unlink()
    (store / name).symlink_to(tmp_path / "not-mounted" / name)
    assert run("add", store, bundles[1], "--activate") == 2
    assert str(store / name) in capsys.readouterr().err
    assert len(list((store / "versions").iterdir())) == 1


def test_a_report_cannot_be_checked_against_a_damaged_pointer(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: Outputs
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    (store / "current").write_text("{")
    assert run("add", store, bundles[1], "--gate", gate) == 2
    assert f"{store / 'current'} is damaged, so the current version is not known" in capsys.readouterr().err
    assert run("activate", store, versions[0], "--force") == 0
    assert run("add", store, bundles[1], "--gate", gate) == 0


def test_a_file_instead_of_the_folder_of_reports_is_named(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: Outputs
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], versions[0])
    (store / "gates").touch()
    assert run("add", store, bundles[1], "--gate", gate, "--activate") == 2
    assert f"{store / 'gates'} is not a folder: remove it" in capsys.readouterr().err
    assert current_bundle(store).name == versions[0]


def test_names_of_a_report_do_not_reach_the_terminal_unescaped(
    store: Path, bundles: list[Path], versions: list[str], tmp_path: Path, capsys: Outputs
) -> None:
    gate = report(tmp_path / "gate.json", versions[1], "\x1b[2J")
    assert run("add", store, bundles[1], "--gate", gate) == 2
    assert r"the report compares with '\x1b[2J'" in capsys.readouterr().err
