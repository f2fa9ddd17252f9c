"""The two checkouts of a comparison: the interpreter that runs each, and the files and libraries that it imports."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from loadtest.servers import Checkout
from loadtest.targets import LIBRARIES

# Each checkout's interpreter runs this in its own folder and environment. A checkout may not have a `kernel` package.
PROBE = f"""
import json, os, platform
from importlib.metadata import PackageNotFoundError, version
import contract, service
files, kernel_usable = [contract.__file__, service.__file__], None
if os.path.isdir("kernel"):
    import kernel
    files.append(kernel.__file__)
    kernel_usable = kernel.is_usable()
versions = {{"Python": platform.python_version()}}
for name in {LIBRARIES!r}:
    try:
        versions[name] = version(name)
    except PackageNotFoundError:
        versions[name] = "missing"
print(json.dumps({{"files": files, "kernel_usable": kernel_usable, "versions": versions}}))
"""

Name = Literal["this", "other"]


class CannotCompare(RuntimeError):
    """A checkout cannot be run as intended, or a run measured nothing. The message names it and states the reason."""


class Probe(msgspec.Struct, frozen=True):
    """What a checkout's interpreter imports. kernel_usable: None if the checkout has no `kernel` package."""

    files: list[str | None]
    kernel_usable: bool | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Side:
    """One of the two checkouts, with its commit and what its interpreter imports."""

    checkout: Checkout
    commit: str
    probe: Probe

    @classmethod
    def of(cls, checkout: Checkout) -> "Side":
        return cls(checkout, commit_of(checkout.root), probe(checkout))


Sides = Mapping[Name, Side]


def find_checkout(root: Path) -> Checkout:
    """Return a checkout that uses its own .venv/bin/python if there is one, or this interpreter otherwise."""
    python = root / ".venv" / "bin" / "python"
    return Checkout(root, python if python.is_file() else Path(sys.executable))


def probe(checkout: Checkout) -> Probe:
    """Return what the checkout's interpreter imports when it runs in the same way as the server.

    Raises:
        CannotCompare: The interpreter cannot import the server, or imports it from outside the checkout.
    """
    done = subprocess.run(  # noqa: S603
        [str(checkout.python), "-c", PROBE],
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CannotCompare(f"{checkout.python} cannot import the server of {checkout.root}:\n{done.stderr[-2000:]}")
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Probe)
    for file in found.files:
        if file is None or not Path(file).resolve().is_relative_to(checkout.root.resolve()):
            raise CannotCompare(
                f"{checkout.python} imports {file}, which is not in {checkout.root}: "
                "pass a checkout of this project that contains service/ and contract/"
            )
    return found


def commit_of(root: Path) -> str:
    """Return the checkout's commit, with "-dirty" if it has local changes, or "no commit" if git cannot find one."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return "no commit"
    return done.stdout.strip() or "no commit"


def require_same_kernel(sides: Sides) -> None:
    """Reject a comparison in which the kernel's speed would dwarf every other difference.

    Raises:
        CannotCompare: The kernel is compiled in one checkout, but not in the other.
    """
    for side in sides.values():
        if side.probe.kernel_usable is False and any(other.probe.kernel_usable for other in sides.values()):
            raise CannotCompare(
                f"the kernel is compiled in the other checkout but not in {side.checkout.root}: "
                "run `make kernel` there, or remove kernel/_stec*.so from the other checkout"
            )
