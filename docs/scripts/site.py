"""A MkDocs hook that adds linked files outside docs/ to the site, and rewrites the links to them.

In the repository, a page links to the path of a report, for example `../loadtest/results/soak.md`. In the site, reports
and other linked files are in `repository/`.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
OUTSIDE = "repository/"  # The folder in the site for files from outside docs/.
REPORTS = (
    "experiments/ablations.md",
    "experiments/*/results/*.md",
    "loadtest/results/*.md",
    "benchmarks/results/*.md",
    "model/baselines/README.md",
)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(<?)([^()\s<>]+)(>?)((?:\s+\"[^\"]*\")?\))")
FENCE = re.compile(r"^ *(```|~~~)", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the reports, and all files that pages and reports link to, to the files of the site."""
    from mkdocs.structure.files import File

    pages = [DOCS + file.src_uri for file in files if file.is_documentation_page()]
    for path in outside_files(pages):
        files.append(File.generated(config, OUTSIDE + path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links in a page that lead to files outside docs/."""
    return rewritten(markdown, page.file.src_uri)


def outside_files(pages: Iterable[str]) -> list[str]:
    """Return the files outside docs/ that belong to the site: the reports, and all files that pages or reports link to.

    Args:
        pages: The pages in docs/, relative to the repository root.
    """
    found: set[str] = set()
    unread = [*pages, *(str(path.relative_to(ROOT)) for pattern in REPORTS for path in sorted(ROOT.glob(pattern)))]
    while unread:
        path = unread.pop()
        if path in found:
            continue
        if not path.startswith(DOCS):
            found.add(path)
        if path.endswith(".md"):
            unread += [target for target in relative_targets(path) if not target.startswith(DOCS)]
    return sorted(found)


def relative_targets(path: str) -> Iterator[str]:
    """Yield the existing files that a Markdown file links to, relative to the repository root."""
    for target, _ in links((ROOT / path).read_text()):
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if target and (ROOT / resolved).is_file():
            yield resolved


def links(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield the target and anchor of each relative link or image outside code. Either of them may be empty."""
    for text in _prose(markdown)[::2]:
        for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)):
            if "://" not in match[3] and not match[3].startswith("mailto:"):
                target, _, anchor = match[3].partition("#")
                yield unquote(target), anchor


def rewritten(markdown: str, uri: str) -> str:
    """Return a page whose links to files use the paths in the site.

    Args:
        markdown: The text of the page in the repository.
        uri: The path of the page in the site's sources.
    """
    source = uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else DOCS + uri

    def rewrite(match: re.Match[str]) -> str:
        target, mark, anchor = match[3].partition("#")
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(target)))
        if not target or "://" in match[3] or not (ROOT / resolved).is_file():
            return match[0]
        place = resolved.removeprefix(DOCS) if resolved.startswith(DOCS) else OUTSIDE + resolved
        relative = posixpath.relpath(place, posixpath.dirname(uri) or ".")
        return f"{match[1]}{match[2]}{relative}{mark}{anchor}{match[4]}{match[5]}"

    parts = _prose(markdown)
    return "".join(part if number % 2 else LINK.sub(rewrite, part) for number, part in enumerate(parts))


def _prose(markdown: str) -> list[str]:
    """Split a page into parts that alternate between prose and fenced blocks, starting with prose."""
    parts, start, fence = [], 0, ""
    for match in FENCE.finditer(markdown):
        if not fence:
            parts.append(markdown[start : match.start()])
            start, fence = match.start(), match[1]
        elif match[1] == fence:
            end = markdown.find("\n", match.end())
            end = len(markdown) if end < 0 else end + 1
            parts.append(markdown[start:end])
            start, fence = end, ""
    return [*parts, markdown[start:]]
