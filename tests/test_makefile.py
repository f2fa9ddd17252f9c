"""The Makefile creates its virtual environment with the first usable Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")

# Runs the Makefile's check in the interpreter of these tests, as if it had another version.
AS_VERSION = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.version_info = (%s); exec(sys.argv[1])' "$2"
"""
BROKEN = "#!/bin/sh\nexit 127\n"  # like a pyenv shim whose version is not selected
WITHOUT_VENV = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.modules["ensurepip"] = None; exec(sys.argv[1])' "$2"
"""


def version(minor: int) -> str:
    return AS_VERSION % f"3, {minor}, 0"


def create_venv(folder: Path, interpreters: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask make which commands would create .venv in an empty folder where only these interpreters are on PATH."""
    (folder / "bin").mkdir()
    for name, script in interpreters.items():
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    command = [str(MAKE), "--dry-run", "--file", str(ROOT / "Makefile"), "--directory", str(folder)]
    return subprocess.run(
        [*command, ".venv/bin/python", *arguments],
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3.11": version(11), "python3.13": version(13), "python3": version(13)}, "python3.11"),
        ({"python3.12": version(12)}, "python3.12"),
        ({"python3.12": BROKEN, "python3.13": version(13)}, "python3.13"),
        ({"python3.11": WITHOUT_VENV, "python3.14": version(14)}, "python3.14"),
        ({"python3.10": version(10), "python3": version(12)}, "python3"),
    ],
)
def test_the_first_usable_python_creates_the_virtual_environment(
    tmp_path: Path, interpreters: dict[str, str], chosen: str
) -> None:
    made = create_venv(tmp_path, interpreters)
    assert f"{chosen} -m venv .venv" in made.stdout.splitlines(), made.stderr


@pytest.mark.parametrize(
    "interpreters", [{}, {"python3.10": version(10), "python3": version(10)}, {"python3.11": BROKEN}]
)
def test_without_a_usable_python_make_fails_and_says_what_to_install(
    tmp_path: Path, interpreters: dict[str, str]
) -> None:
    made = create_venv(tmp_path, interpreters)
    assert made.returncode == 2
    assert "No Python 3.11 or later was found" in made.stderr
    assert "apt install python3 python3-venv" in made.stderr
    assert "make PYTHON=/path/to/python" in made.stderr
    assert made.stdout.count("venv") == 0


def test_a_python_that_is_named_is_used_without_a_check(tmp_path: Path) -> None:
    made = create_venv(tmp_path, {"python3.11": version(11)}, "PYTHON=/opt/python/bin/python3")
    assert "/opt/python/bin/python3 -m venv .venv" in made.stdout.splitlines()
