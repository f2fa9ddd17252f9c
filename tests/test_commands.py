"""The training and export commands defined in pyproject.toml."""

import subprocess
import sys
import tomllib

import pytest

from tests.support.paths import ROOT

SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
COMMANDS = {name: main for name, main in SCRIPTS.items() if main.startswith(("model.", "export."))}
HEAVY = {"torch", "polars", "numpy", "sklearn", "scipy", "matplotlib", "onnx", "onnxruntime", "rich"}

PRINT_IMPORTS = """
import importlib, sys
module, function = sys.argv.pop(1).split(":")
try:
    getattr(importlib.import_module(module), function)()
finally:
    print(*sys.modules, sep="\\n")
"""

PRINT_RESULT = PRINT_IMPORTS.replace("getattr", "code = getattr").replace("print(*", "print(code, *")


def test_every_training_and_export_command_exists() -> None:
    prepared = {"ctr-inspect", "ctr-prepare", "ctr-train", "ctr-sweep", "ctr-compare", "ctr-join"}
    exported = {"ctr-export", "ctr-explain", "ctr-predict"}
    assert {*COMMANDS} == prepared | exported | {"ctr-calibrate", "ctr-cycle", "ctr-gate"}


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help_does_not_import_slow_libraries(command: str) -> None:
    arguments = [sys.executable, "-c", PRINT_IMPORTS, COMMANDS[command], "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"usage: {command}" in result.stdout
    imported = {*result.stdout.splitlines()}
    assert "argparse" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("ctr-calibrate", ["nowhere"], "nowhere is not a run (it has no metrics.json)."),
        ("ctr-export", ["nowhere", "bundle"], "nowhere is not a run (it has no metrics.json)."),
        ("ctr-predict", ["nowhere", "log.csv", "--out", "scores.csv"], "nowhere is neither a bundle"),
        ("ctr-explain", ["nowhere", "--golden", "1"], "nowhere is neither a bundle"),
        ("ctr-gate", ["nowhere", "old", "joined", "--out", "report"], "nowhere is neither a bundle"),
    ],
)
def test_a_folder_that_is_not_a_run_is_an_error_before_slow_imports(
    command: str, arguments: list[str], message: str
) -> None:
    run = [sys.executable, "-c", PRINT_RESULT, COMMANDS[command], *arguments]
    result = subprocess.run(run, capture_output=True, text=True, check=False)
    assert f"{command}: {message}" in result.stderr
    code, *imported = result.stdout.splitlines()
    assert code == "2"
    assert not {*imported} & {"torch", "polars", "onnxruntime"}
