"""Memory and lookup time for 2.1 million tokens: memory per worker, and time per token."""

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
CACHE_TOKENS, CACHE_BYTES = 100_000, 16 * 1024 * 1024  # the service's defaults
ROUNDS = 5
MIB = 1024 * 1024


def tokens(field: str, number: int) -> list[str]:
    """Return hexadecimal ids in no particular order, like those of ad platforms."""
    return [f"{field}-{(rank * 2654435761) % 2**32:08x}" for rank in range(number)]


def write(folder: Path) -> None:
    """Write the vocabularies of all fields."""
    for field, number in FIELDS.items():
        build_vocabulary(tokens(field, number)).save(folder, field)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.vocabulary", description=__doc__)
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.process:
        run_worker(arguments.process)
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
        ["a cached token", f"{cached_us:.2f} µs", "0.3 µs"],
        ["any other known token", f"{known_us:.2f} µs", "3 µs"],
        ["an unknown token", f"{unknown_us:.2f} µs", ""],
    ]
    text = (
        f"{TOKENS:,} tokens in {len(FIELDS)} fields ({size:.0f} MiB of files), each looked up once, with a cache of "
        f"{CACHE_TOKENS:,} tokens. Memory is the increase over a process without a vocabulary; for each further "
        f"worker, it includes only pages that are not shared. Time is the best of {ROUNDS} rounds, 100 tokens at a "
        "time, through the request path (`TokenCache.split`, then the bundle's vocabulary)."
    )
    table = Table("", ["what", "measured", "target"], rows)
    command = "python -m benchmarks.vocabulary"
    write_report(RESULTS / "vocabulary.md", "2.1 million tokens", text, [table], ["marisa-trie", "numpy"], command)
    return 0


def memory_mib(folder: Path) -> tuple[float, float]:
    """Return the memory of the first worker and of a second worker that runs at the same time, in MiB.

    For the first worker, this is the increase over a process without a vocabulary. For the second worker, it includes
    only private pages.
    """
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--process"]
    pipe, processes = subprocess.PIPE, []
    for argument in (Path("/nonexistent"), folder, folder):
        process = subprocess.Popen([*command, str(argument)], text=True, stdin=pipe, stdout=pipe)
        processes.append(process)
    found: list[dict[str, int]] = []
    for process in processes:
        assert process.stdout is not None
        found.append(json.loads(process.stdout.readline()))
    for process in processes:
        process.communicate()  # closes stdin, which makes the worker exit
    without, first, second = found
    base = without["private"]
    return (first["rss_files"] + first["private"] - base) / 1024, (second["private"] - base) / 1024


def run_worker(folder: Path) -> None:
    """Open the vocabulary, look up every token once, print the memory used, and wait until stdin is closed."""
    kept = []
    if folder.is_dir():
        cache = TokenCache(FIELDS, CACHE_TOKENS, CACHE_BYTES, 60.0)
        for field, number in FIELDS.items():
            vocabulary = open_vocabulary(folder, field)
            for rank in range(number):
                token = f"{field}-{(rank * 2654435761) % 2**32:08x}"
                cache.put(field, {token: vocabulary(token)})
            kept.append((vocabulary, cache))
    print(json.dumps({"private": private_kib(), "rss_files": mapped_kib(folder)}), flush=True)
    sys.stdin.read()


def private_kib() -> int:
    """Return the size of this process's private and swapped pages in KiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Swap:")))


def mapped_kib(folder: Path) -> int:
    """Return the size of the resident pages of the files in a folder in KiB, shared or not."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            inside = str(folder) in line
        elif inside and words[0] == "Rss:":
            total += int(words[1])
    return total


def times_us(folder: Path, number: int = 20_000) -> tuple[float, float, float]:
    """Return the lookup times in µs for a cached token, another known token, and an unknown token."""
    vocabulary = open_vocabulary(folder, "user")
    known = tokens("user", number)
    cache = TokenCache(["user"], 4 * number, 2**30, 60.0)
    cache.put("user", {token: vocabulary(token) for token in known})
    requests = [{"user": known[start : start + 100]} for start in range(0, number, 100)]

    def cached() -> None:
        for wanted in requests:
            cache.split(wanted)

    def from_the_bundle(wanted: list[str]) -> None:
        for token in wanted:
            vocabulary(token)

    unknown = [f"{token}x" for token in known]
    runs = (cached, lambda: from_the_bundle(known), lambda: from_the_bundle(unknown))
    best = [min(timeit.repeat(run, number=1, repeat=ROUNDS)) / number * 1e6 for run in runs]
    return best[0], best[1], best[2]


if __name__ == "__main__":
    sys.exit(main())
