"""What 2.1 million tokens cost a server: memory of the first worker and of each further one, and time per token."""

import argparse
import json
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Sequence
from pathlib import Path

from benchmarks import RESULTS
from contract.vocabulary import build_vocabulary, open_vocabulary
from loadtest.report import Table, write_report
from service.vocabulary.cache import TokenCache

TOKENS = 2_100_000
FIELDS = {"user": 1_500_000, "ad": 500_000, "page": 100_000}
CACHE_TOKENS, CACHE_BYTES = 100_000, 16 * 1024 * 1024  # as the service has by default
ROUNDS = 5
MIB = 1024 * 1024


def tokens(field: str, number: int) -> list[str]:
    """Ids as ad platforms have them: hexadecimal, of no order."""
    return [f"{field}-{(rank * 2654435761) % 2**32:08x}" for rank in range(number)]


def write(folder: Path) -> None:
    for field, number in FIELDS.items():
        build_vocabulary(tokens(field, number)).save(folder, field)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.vocabulary")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.process:
        _be_a_worker(arguments.process)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        size = sum(path.stat().st_size for path in folder.iterdir()) / MIB
        first, further = memory_mib(folder)
        cached_us, known_us, unknown_us = times_us(folder)
    rows = [
        ["first worker", f"{first:.0f} MiB", "150 MiB"],
        ["each further worker", f"{further:.0f} MiB", "20 MiB"],
        ["a cached token", f"{cached_us:.2f} us", "0.3 us"],
        ["any other known token", f"{known_us:.2f} us", "3 us"],
        ["an unknown token", f"{unknown_us:.2f} us", ""],
    ]
    text = (
        f"{TOKENS:,} tokens in {len(FIELDS)} fields ({size:.0f} MiB of files), every one looked up once, with a cache "
        f"of {CACHE_TOKENS:,} tokens. Memory: what a process has more, after that, than one without a vocabulary; of a "
        f"further one, what is not shared (private pages). Time: the best of {ROUNDS} rounds, a request's way "
        "(`TokenCache.split`, then the bundle's vocabulary), 100 tokens at a time."
    )
    table = Table("", ["what", "measured", "bar"], rows)
    command = "python -m benchmarks.vocabulary"
    write_report(RESULTS / "vocabulary.md", "2.1 million tokens", text, [table], ["marisa-trie", "numpy"], command)
    return 0


def memory_mib(folder: Path) -> tuple[float, float]:
    """Of a first process: all pages that it has more than one without a vocabulary. Of a second one beside it: its
    private pages."""
    without = _started(Path("/nonexistent"))
    first = _started(folder)
    second = _started(folder)
    base = _report(without)["private"]
    one, other = _report(first), _report(second)
    for process in (without, first, second):
        process.communicate()
    return (one["rss_files"] + one["private"] - base) / 1024, (other["private"] - base) / 1024


def _started(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--process", str(folder)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _report(process: "subprocess.Popen[str]") -> dict[str, int]:
    assert process.stdout is not None
    read: dict[str, int] = json.loads(process.stdout.readline())
    return read


def _be_a_worker(folder: Path) -> None:
    """Opens it, asks for every token once, says what memory it takes, and waits."""
    kept = []
    if folder.is_dir():
        cache = TokenCache(FIELDS, CACHE_TOKENS, CACHE_BYTES, 60.0)
        for field, number in FIELDS.items():
            vocabulary = open_vocabulary(folder, field)
            for rank in range(number):
                token = f"{field}-{(rank * 2654435761) % 2**32:08x}"
                cache.put(field, {token: vocabulary(token)})
            kept.append((vocabulary, cache))
    print(json.dumps({"private": _private_kib(), "rss_files": _mapped_kib(folder)}), flush=True)
    sys.stdin.read()


def _private_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Swap:")))


def _mapped_kib(folder: Path) -> int:
    """Pages of the vocabulary's files, whoever else has them mapped."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = str(folder) in line
        elif inside and words[0] == "Rss:":
            total += int(words[1])
    return total


def times_us(folder: Path, number: int = 20_000) -> tuple[float, float, float]:
    """Of a cached token, of another known one, and of one that nobody knows."""
    vocabulary = open_vocabulary(folder, "user")
    known = tokens("user", number)
    cache = TokenCache(["user"], 4 * number, 2**30, 60.0)
    cache.put("user", {token: vocabulary(token) for token in known})
    requests = [{"user": known[start : start + 100]} for start in range(0, number, 100)]

    def cached() -> None:
        for wanted in requests:
            cache.split(wanted)

    def from_the_bundle(ask: list[str]) -> None:
        for token in ask:
            vocabulary(token)

    unknown = [f"{token}x" for token in known]
    runs = (cached, lambda: from_the_bundle(known), lambda: from_the_bundle(unknown))
    best = [min(timeit.repeat(run, number=1, repeat=ROUNDS)) / number * 1e6 for run in runs]
    return best[0], best[1], best[2]


if __name__ == "__main__":
    sys.exit(main())
