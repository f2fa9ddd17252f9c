"""Speed and memory use of ctr-prepare on a log in Criteo's format."""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks import RESULTS
from loadtest.report import Table, write_report

TITLE = "Preparing a log of Criteo's size and format"
CORES = 2
MIN_COUNT = 10
TRAIN, REST = "train.txt", "rest.txt"
TEXT = f"""The input is a generated log in Criteo's format: a label, 13 numbers and 26 columns of hashed ids. Values are
missing as often as in Criteo's log, and ids follow Zipf's law. `ctr-prepare` with `min_count = {MIN_COUNT}` runs in its
own process on {CORES} threads. It reads the text and writes ids, numbers, labels and vocabularies to disk. An
additional 1% of rows serves as both the valid and the test split. Peak memory is the process's `ru_maxrss`. Cores busy
is the CPU time divided by the elapsed seconds. Reading alone is polars' streaming reader on the same text. It reads
every value as text, and discards each batch."""
READ_ALONE = """
import sys
import polars as pl
for path in sys.argv[1:]:
    scan = pl.scan_csv(path, separator="\t", has_header=False, infer_schema=False, quote_char=None)
    for batch in scan.collect_batches(engine="streaming", chunk_size=200_000, maintain_order=True):
        pass
"""
# Numbers of distinct values of C1 to C26 in Criteo's 46 million rows.
SIZES = [
    *(1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194),
    *(27, 14_992, 5_461_306, 10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572),
]
# Share of missing values in I1 to I13, and in C1 to C26 by column number.
NO_NUMBER = [0.45, 0, 0.22, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22]
NO_TOKEN = {3: 0.03, 4: 0.03, 6: 0.12, 12: 0.03, 16: 0.03, 19: 0.44, 20: 0.44, 21: 0.03, 22: 0.76, 24: 0.03}
CHUNK = 500_000
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def hashed(column: int, size: int) -> pl.Series:
    """Return `size` ids of eight hexadecimal digits. Like hashes, some of them collide."""
    codes = np.random.default_rng(column).integers(0, 2**32, size, dtype=np.uint32)
    digits = HEX[(codes[:, None] >> np.arange(28, -4, -4, dtype=np.uint32)) & 15]
    lines = np.concatenate([digits, np.full((size, 1), ord("\n"), np.uint8)], 1).tobytes()
    return pl.read_csv(io.BytesIO(lines), has_header=False, infer_schema=False).to_series()


def draw(random: np.random.Generator, ids: list[pl.Series], rows: int) -> pl.DataFrame:
    """Sample rows with the columns label, I1 to I13 and C1 to C26. ids: the ids of each column from C1 to C26."""
    columns = {"label": pl.Series((random.random(rows) < 0.25).astype(np.int8))}
    for i, missing in enumerate(NO_NUMBER):
        numbers = pl.Series(np.floor(random.lognormal(2, 1.8, rows)).astype(np.int64) - (i == 1))
        columns[f"I{i + 1}"] = numbers.set(pl.Series(random.random(rows) < missing), None)
    for i, column_ids in enumerate(ids, 1):
        ranks = np.exp(random.random(rows) * np.log(len(column_ids))).astype(np.int64) - 1  # Zipf's law, exponent 1
        tokens = column_ids.gather(ranks)
        columns[f"C{i}"] = tokens.set(pl.Series(random.random(rows) < NO_TOKEN.get(i, 0)), None)
    return pl.DataFrame(columns)


def generate(path: Path, rows: int, seed: int = 1) -> None:
    """Write a log in Criteo's format."""
    random = np.random.default_rng(seed)
    ids = [hashed(column, size) for column, size in enumerate(SIZES)]
    with path.open("wb") as file:
        for start in range(0, rows, CHUNK):
            draw(random, ids, min(CHUNK, rows - start)).write_csv(file, separator="\t", include_header=False)


def experiment(folder: Path) -> Path:
    """Write an experiment that reads the log as a table, and return its path. Valid and test are the same file."""
    numbers, tokens = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    data = {
        "reader": "table",
        "folder": ".",
        "prepared": "prepared",
        "min_count": MIN_COUNT,
        "train": TRAIN,
        "valid": REST,
        "test": REST,
        "columns": ["label", *numbers, *tokens],
        "context": [*numbers, *tokens[:20]],
        "candidate": tokens[20:],
        "numeric": numbers,
    }
    path = folder / "criteo.toml"
    lines = (
        f"{key} = {json.dumps(value)}" for key, value in data.items()
    )  # strings and lists have the same syntax in TOML and JSON
    path.write_text("\n".join(["[data]", *lines, ""]))
    return path


def prepare(folder: Path) -> tuple[float, float, float]:
    """Run ctr-prepare on the log. Return the same values as `run`."""
    return run(["-m", "model.cli.prepare", "--config", str(experiment(folder)), "--data", str(folder)])


def read_alone(folder: Path) -> tuple[float, float, float]:
    """Read the same files with polars alone. Return the same values as `run`."""
    return run(["-c", READ_ALONE, str(folder / TRAIN), *[str(folder / REST)] * 2])


def run(arguments: list[str]) -> tuple[float, float, float]:
    """Run this interpreter with these arguments, and return the seconds, CPU seconds and peak memory in GB.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start = time.perf_counter()
    command = [sys.executable, *arguments]
    environment = os.environ | {"POLARS_MAX_THREADS": str(CORES)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)  # os.wait4 returns the usage of this process only
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def distinct(path: Path) -> int:
    """Return the total number of distinct values in C1 to C26."""
    scan = pl.scan_csv(path, separator="\t", has_header=False, infer_schema=False, quote_char=None)
    columns = scan.collect_schema().names()[14:]
    return sum(scan.select(pl.col(name).drop_nulls().n_unique()).collect(engine="streaming").item() for name in columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--folder", type=Path, help="folder for the log, which takes 5 GB (default: a temporary folder)"
    )
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        # Generate the log in another process, because a child inherits the peak memory of its parent.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            process.submit(generate, folder / TRAIN, options.rows).result()
            process.submit(generate, folder / REST, options.rows // 100, seed=2).result()
        seconds, cpu_s, memory_gb = prepare(folder)
        alone_s, *_ = read_alone(folder)
        values, size_gb = distinct(folder / TRAIN), (folder / TRAIN).stat().st_size / 1e9
    rows = options.rows + 2 * (options.rows // 100)
    cells = {
        "rows": f"{rows:,}",
        "text": f"{size_gb:.1f} GB",
        "distinct values of C1 to C26": f"{values:,}",
        "seconds": f"{seconds:.1f}",
        "rows/s": f"{rows / seconds:,.0f}",
        "peak memory": f"{memory_gb:.2f} GB",
        "cores busy": f"{cpu_s / seconds:.2f} of {CORES}",
        "reading alone": f"{rows / alone_s:,.0f} rows/s",
    }
    table = Table("", list(cells), [list(cells.values())])
    write_report(
        RESULTS / "prepare.md",
        TITLE,
        TEXT,
        [table],
        ["polars", "numpy", "marisa-trie"],
        "python -m benchmarks.prepare",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
