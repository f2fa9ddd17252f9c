"""The model for the load tests: 23 categorical fields (18 context and 5 candidate fields) and full attention.

A generated log goes through the usual pipeline: ctr-prepare, ctr-train, ctr-export. The log's vocabularies are as
large as an ad server's. Its clicks follow a simple rule, because a model's speed does not depend on what it learned.

    python -m loadtest.reference_model        # writes bundles/stec-23 in about a minute
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from contract.bundle import MANIFEST
from contract.schema import FeatureSchema, Side
from export.graphs.plain import PlainGraph
from export.graphs.serving import ServingGraph
from export.onnx_file import save_together, to_onnx
from model.atomic_folder import new_folder
from model.data.readers.log import SPLITS
from model.experiment_config import read_experiment
from model.stec.stec import STEC

EXPERIMENT = Path("experiments/load/stec-23.toml")
BUNDLE = Path("bundles/stec-23")
DATA, RUN = Path("data"), Path("runs/stec-23")
ROWS = {"train": 300_000, "valid": 30_000, "test": 30_000}
# Users and ads have many tokens. The other fields model pages, locations, devices, campaigns and formats.
TOKENS = {"user": 100_000, "ad": 20_000}
OTHERS = (2, 7, 24, 50, 200, 1000, 5000)
SKEW = 1.1
CLICK_RATE = 0.1


def ensure_bundle() -> Path:
    """Return BUNDLE, after building it if it does not exist.

    Raises:
        subprocess.CalledProcessError: A step of the pipeline failed.
    """
    if (BUNDLE / MANIFEST).exists():
        return BUNDLE
    write_log(DATA)
    for command in (
        ["model.cli.prepare", str(EXPERIMENT), "--data", str(DATA)],
        ["model.cli.train", str(EXPERIMENT), "--data", str(DATA), "--out", str(RUN)],
        ["export.cli.export", str(RUN), str(BUNDLE), "--data", str(DATA)],
    ):
        subprocess.run([sys.executable, "-m", *command], check=True)  # noqa: S603
    return BUNDLE


def write_plain(
    model: STEC, schema: FeatureSchema, vocabularies: Mapping[str, Mapping[str, int]], folder: Path
) -> None:
    """Write the model in a form that servers other than this project's can load.

    Args:
        folder: The output folder. The files are plain.onnx (the model as exported by torch), model.onnx (our graph with
            onnxruntime's own operators) and vocabulary.json (the ids of each side's fields in the graph's order).
    """
    graphs = {"plain.onnx": PlainGraph(model, schema), "model.onnx": ServingGraph(model, schema)}
    save_together({name: to_onnx(graph, schema) for name, graph in graphs.items()}, folder)
    sides: tuple[Side, Side] = ("context", "candidate")
    vocabulary = {side: [(f.name, vocabularies[f.name]) for f in schema.select("categorical", side)] for side in sides}
    (folder / "vocabulary.json").write_bytes(msgspec.json.encode(vocabulary))


def write_log(root: Path, rows: dict[str, int] = ROWS, seed: int = 1) -> Path:
    """Write {train,valid,test}.parquet to root/load and return that folder. The same seed gives the same files."""
    data = read_experiment(EXPERIMENT).data
    fields = [*data.context, *data.candidate]
    random = np.random.default_rng(seed)
    sizes = {name: TOKENS.get(name, OTHERS[index % len(OTHERS)]) for index, name in enumerate(fields)}
    weights = {name: random.normal(0, 0.5, size) for name, size in sizes.items()}
    with new_folder(root / data.folder, "test.parquet") as folder:
        for split in SPLITS:
            draw(fields, sizes, weights, rows[split], random).write_parquet(folder / f"{split}.parquet")
    return root / data.folder


def draw(
    fields: Sequence[str], sizes: dict[str, int], weights: dict[str, np.ndarray], rows: int, random: np.random.Generator
) -> pl.DataFrame:
    """Sample tokens from a power law, and clicks whose logit is the sum of the tokens' weights and a user-ad term."""
    codes = {name: power_law(random, sizes[name], rows) for name in fields}
    single = np.mean([weights[name][codes[name]] for name in fields], axis=0)
    pair = weights["user"][codes["user"]] * weights["ad"][codes["ad"]]
    logit = 12 * single + 2 * pair + np.log(CLICK_RATE / (1 - CLICK_RATE))
    numbers = pl.DataFrame(codes)
    frame = numbers.select(pl.format("{}-{}", pl.lit(name), pl.col(name)).alias(name) for name in fields)
    return frame.with_columns(pl.Series("click", (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)))


def power_law(random: np.random.Generator, tokens: int, rows: int) -> np.ndarray:
    """Sample `rows` tokens from 0 to `tokens` - 1, with a probability proportional to 1 / (token + 1)^SKEW."""
    shares = np.arange(1, tokens + 1, dtype=np.float64) ** -SKEW
    return np.searchsorted(np.cumsum(shares / shares.sum())[:-1], random.random(rows), side="right")


def main() -> int:
    if BUNDLE.exists():
        shutil.rmtree(BUNDLE)
    print(f"wrote {ensure_bundle()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
