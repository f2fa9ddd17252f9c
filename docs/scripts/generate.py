"""Update the generated parts of README.md and docs/: tables and a chart from reports, and the configuration reference.

Run this after a change to a report, a setting, or a key in an experiment's TOML file:

    python -m docs.scripts.generate

With --check, the script writes nothing, and exits with code 1 if a file is out of date.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.scripts.chart import throughput_chart
from docs.scripts.reference import configuration
from docs.scripts.reports import ROOT
from docs.scripts.tables import ROOT_MARK, blocks

CHART = ROOT / "docs" / "pictures" / "throughput.svg"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may contain generated blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def files() -> dict[Path, str]:
    """Return the expected text of each generated file.

    Raises:
        ValueError: If a page contains an unknown block, or a block is not on any page.
    """
    known = blocks() | configuration()
    texts = {CHART: throughput_chart()}
    used = set()
    for page in pages():
        text = page.read_text()
        used |= {name for _, name, _ in BLOCK.findall(text)}
        texts[page] = filled(text, known, page)
    if unused := known.keys() - used:
        raise ValueError(f"no page has <!-- generated: {min(unused)} -->")
    return texts


def filled(text: str, known: Mapping[str, Sequence[str]], page: Path) -> str:
    """Return a page's text with updated generated blocks."""
    root = "../" * (len(page.relative_to(ROOT).parts) - 1)

    def fill(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in known:
            raise ValueError(f"{page}: {name!r} is not a generated block. Use one of {', '.join(sorted(known))}")
        lines = [line.replace(ROOT_MARK, root) for line in known[name]]
        return "\n".join([begin.rstrip(), *lines, end])

    return BLOCK.sub(fill, text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files. Return 0, or 1 if --check is set and a file is out of date."""
    parser = argparse.ArgumentParser("python -m docs.scripts.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with code 1 if a file is out of date")
    arguments = parser.parse_args(argv)
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date. Run python -m docs.scripts.generate", file=sys.stderr)
        return 1 if stale else 0
    for path, text in files().items():
        if path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
