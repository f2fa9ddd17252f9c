"""python -m loadtest.paired with real servers: which code it runs, what it reports, and how it exits."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from contract.bundle import open_bundle
from loadtest.openloop.bodies import prepare
from loadtest.paired import __main__ as paired
from loadtest.paired.checkouts import CannotCompare, Probe, Side, find_checkout, probe, require_same_kernel
from loadtest.paired.runs import Plan, measure
from loadtest.servers import Checkout
from tests.support.paths import DEMO, ROOT
from tests.support.processes import children, eventually, is_alive

SHORT = ("--pairs", "2", "--seconds", "1", "--warm-up", "0.5")


def write_checkout(root: Path, main: str) -> Path:
    """Create a folder with the packages that a checkout must contain. `main`: the code of `python -m service`."""
    for package in ("contract", "service"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "service" / "__main__.py").write_text(main)
    return root


@pytest.mark.full
def test_a_checkout_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both servers answer, all answers are correct, and each ratio lies within its interval."""
    monkeypatch.setattr(paired, "RESULTS", tmp_path)
    log = tmp_path / "log"
    code = paired.main([str(ROOT), *SHORT, "--report", "--set", f"CTR_REQUEST_LOG={log}"])
    assert code == 0, capsys.readouterr()
    report = (tmp_path / "paired.md").read_text()
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line[:1] == "|"]
    rows = {first: rest for first, *rest in tables}
    for figure in ("CPU µs/request", "requests/s", "p50 ms", "p99 ms"):
        this, other, ratio, interval = rows[figure]
        low, high = map(float, interval.split(" to "))
        assert 0 < low <= float(ratio) <= high
        assert float(this.replace(",", "")) / float(other.replace(",", "")) == pytest.approx(float(ratio), rel=0.02)
    checked = re.search(r"^\| answers checked \| ([\d,]+) \| ([\d,]+) \|$", report, re.M)
    assert checked is not None
    assert all(int(count.replace(",", "")) > 20 for count in checked.groups())
    assert "| wrong scores | 0 | 0 |" in report
    assert "| requests without scores | 0 | 0 |" in report
    assert "differ by at most 0 over" in report
    assert f"Only `this` runs with `CTR_REQUEST_LOG={log}`." in report
    assert log.is_dir()


@pytest.mark.parametrize("text", ["REQUEST_LOG=x", "CTR_REQUEST_LOG"])
def test_a_setting_without_a_name_or_a_value_is_an_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        paired.main([str(ROOT), "--set", text])
    assert f"{text!r} is not a setting. Write CTR_NAME=VALUE." in capsys.readouterr().err


@pytest.mark.parametrize("rate", [100.0, None], ids=["open", "closed"])
def test_wrong_answers_under_load_are_counted(rate: float | None) -> None:
    """Half of the requests expect probabilities that differ from the bundle's."""
    bundle = open_bundle(DEMO)
    right, wrong = prepare([bundle], {5: 2}, None)
    shifted = {version: [ctr + 0.01 for ctr in expected] for version, expected in wrong.expected.items()}
    requests = [right, msgspec.structs.replace(wrong, expected=shifted)]
    plan = Plan(bundle, requests, 1, (), (), warm_up_s=0.2, seconds=1.0, rate=rate)
    found = measure(find_checkout(ROOT), plan, seed=1)
    assert found.failed == 0
    assert 20 < found.answered <= found.checked
    assert 0.2 * found.checked < found.wrong < 0.8 * found.checked
    assert "off by 0.01" in found.problems[0]
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.cpu_us > 0


def test_ctrl_c_stops_the_servers() -> None:
    command = [sys.executable, "-m", "loadtest.paired", str(ROOT), *SHORT]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers: list[int] = []

    def serves() -> bool:
        for child in children(process.pid):
            if b"-m\0service\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers[:] = [child, *children(child)]
        return len(workers) > 1

    try:
        eventually(serves, "a server runs")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors == "paired: interrupted; the servers have been stopped\n"
    assert not any(map(is_alive, workers))


def test_a_server_that_does_not_start_is_an_error_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkout(tmp_path / "other", "raise SystemExit('there is a bug in this checkout')")
    assert paired.main([str(other), *SHORT]) == 2
    errors = capsys.readouterr().err
    assert "exited with code 1" in errors
    assert "there is a bug in this checkout" in errors


def test_a_folder_without_the_project_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This also holds if the project is installed, so that its packages could be imported from elsewhere."""
    assert paired.main([str(tmp_path), *SHORT]) == 2
    errors = capsys.readouterr().err
    assert f"not in {tmp_path}" in errors or "No module named" in errors


def test_a_checkout_is_run_with_its_own_code() -> None:
    found = probe(find_checkout(ROOT))
    assert str(ROOT / "service" / "__init__.py") in found.files
    assert {"Python", "onnxruntime", "uvicorn"} <= set(found.versions)


def test_a_checkout_with_its_own_environment_is_run_with_it(tmp_path: Path) -> None:
    assert find_checkout(tmp_path).python == Path(sys.executable)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_checkout(tmp_path).python == python


def test_a_compiled_kernel_is_not_compared_with_an_uncompiled_one() -> None:
    def side(usable: bool | None) -> Side:
        return Side(Checkout(Path("/a"), Path("/a/python")), "", Probe([], usable, {}))

    for same in (True, False, None):
        require_same_kernel({"this": side(same), "other": side(same)})
    require_same_kernel({"this": side(True), "other": side(None)})
    for this, other in ((True, False), (False, True)):
        with pytest.raises(CannotCompare, match="make kernel"):
            require_same_kernel({"this": side(this), "other": side(other)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all"], "not a folder"),
        ([".", "--pairs", "1"], "2 or more"),
        ([".", "--seconds", "0"], "--seconds: 0 is not above 0"),
        ([".", "--warm-up", "-1"], "--warm-up: -1 is below 0"),
        ([".", "--load", "closed", "--rate", "10"], "--rate requires --load open"),
    ],
)
def test_invalid_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        paired.main(arguments)
    assert message in capsys.readouterr().err
