"""The two checkouts that are compared: which interpreter runs each, and which files and libraries it imports."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from loadtest.servers import Checkout
from loadtest.targets import LIBRARIES

# Run by each checkout's interpreter, in its folder and environment. A checkout may have no package `kernel`.
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
    """A checkout cannot be run as intended, or a run measured nothing. The message says which and why."""


class Probe(msgspec.Struct, frozen=True):
    """What a checkout's interpreter imports. kernel_usable: None if the checkout has no package `kernel`."""

    files: list[str | None]
    kernel_usable: bool | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Side:
    """One of the two checkouts, and what was found about it."""

    checkout: Checkout
    commit: str
    probe: Probe

    @classmethod
    def of(cls, checkout: Checkout) -> "Side":
        return cls(checkout, commit_of(checkout.root), probe(checkout))


Sides = Mapping[Name, Side]


def find_checkout(root: Path) -> Checkout:
    """Return a checkout with its own .venv/bin/python, or else with this interpreter."""
    python = root / ".venv" / "bin" / "python"
    return Checkout(root, python if python.is_file() else Path(sys.executable))


def probe(checkout: Checkout) -> Probe:
    """Return what the checkout's interpreter imports when it is run as the server is.

    Raises:
        CannotCompare: It cannot import the server, or imports it from somewhere else.
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
                "pass a checkout of this project, which has service/ and contract/"
            )
    return found


def commit_of(root: Path) -> str:
    """Return the commit that a checkout is at, with "-dirty" when files differ from it; "no commit" without git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return "no commit"
    return done.stdout.strip() or "no commit"


def require_same_kernel(sides: Sides) -> None:
    """Refuse a comparison in which the kernel's speed would dwarf every other difference.

    Raises:
        CannotCompare: One checkout has its kernel compiled, and the other one only its source.
    """
    for side in sides.values():
        if side.probe.kernel_usable is False and any(other.probe.kernel_usable for other in sides.values()):
            raise CannotCompare(
                f"the kernel of {side.checkout.root} is not compiled and the other checkout's is: "
                "run `make kernel` there, or remove the other one's kernel/_stec*.so"
            )
