"""The pages of the documentation, their code blocks, and the commands in them."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.paths import ROOT

SERVER, COLLECT = "http://127.0.0.1:8000", "http://127.0.0.1:8010"
LONGER = {"timeout_ms": 10_000}  # because the machine may be busy
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block on a page."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.strip().splitlines()[0][:60]}"


def code_blocks(*languages: str) -> list[CodeBlock]:
    """Return the blocks in these languages, or in all languages, from all pages."""
    return [block for page in PAGES for block in blocks_of(page) if not languages or block.language in languages]


def blocks_of(page: Path) -> Iterator[CodeBlock]:
    """Yield the fenced blocks of a page."""
    for language, text in FENCED.findall(page.read_text()):
        yield CodeBlock(page, language, text)


def without_code(page: Path) -> str:
    """Return a page's text without its fenced blocks."""
    return FENCED.sub("", page.read_text())


def commands(block: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell block, each as a list of words. A quoted word may span several lines."""
    pending = ""
    for line in block.splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote that is closed on a later line
            continue
        pending = ""
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words
    assert not pending, f"a quote is not closed: {pending}"


async def send(
    curl: list[str], client: httpx.AsyncClient, server: str = SERVER, added: Mapping[str, Any] = LONGER
) -> httpx.Response:
    """Send the request of a curl command to a server, with the `added` members in its body."""
    assert curl[:2] == ["curl", "-sS"]
    url = curl[2]
    assert url.startswith(server)
    if "-d" not in curl:
        return await client.get(url)
    body = json.loads(curl[curl.index("-d") + 1]) | added
    headers = dict(pair.split(": ", 1) for flag, pair in itertools.pairwise(curl) if flag == "-H")
    return await client.post(url, json=body, headers=headers)
