"""ctr-export: a run -> a bundle, checked before it appears."""

import argparse
import math
import shutil
import sys
from pathlib import Path

import msgspec
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from contract.bundle import GOLDEN, MANIFEST, MODEL, SCHEMA, VOCABULARY, Calibration, Manifest, write_manifest
from contract.golden import write_golden
from contract.schema import write_schema
from contract.vocabulary import open_vocabulary
from export.check import check_parity, torch_ctr
from export.golden import draw_golden, golden_inputs
from export.graph import PlainGraph, ServingGraph
from export.onnx_file import write_onnx
from model.experiment import Experiment
from model.folder import check_replaceable, new_folder
from model.run import RunMetrics, open_run


def export(run: Path, bundle: Path) -> tuple[Manifest, float]:
    """Writes the bundle whole or not at all; returns its manifest and the largest difference from torch.

    Raises:
        ValueError: when `run` is no run, or `bundle` is a folder of something else.
        ParityError: when onnxruntime and torch disagree.
    """
    check_replaceable(bundle, MANIFEST)
    model, experiment, schema, metrics = open_run(run)
    # A log that kept a share w of its negatives has odds 1 / w too high.
    calibration = Calibration(shift=math.log(experiment.data.negative_rate))
    vocabularies = {f.name: open_vocabulary(run / VOCABULARY, f.name) for f in schema.select("categorical")}
    with new_folder(bundle, MANIFEST) as folder:
        write_schema(schema, folder / SCHEMA)
        shutil.copytree(run / VOCABULARY, folder / VOCABULARY)
        graph = PlainGraph(model, schema) if experiment.model.mlp else ServingGraph(model, schema)
        write_onnx(graph, schema, folder / MODEL)
        golden = draw_golden(schema, vocabularies)
        inputs = list(golden_inputs(schema, vocabularies, golden))
        answers = torch_ctr(model, schema, inputs, calibration)
        difference = check_parity(folder / MODEL, inputs, answers, calibration)
        answered = [msgspec.structs.replace(g, ctr=ctr) for g, ctr in zip(golden, answers, strict=True)]
        write_golden(answered, folder / GOLDEN)
        manifest = write_manifest(folder, experiment.name, metrics.parameters, _facts(metrics, experiment), calibration)
    return manifest, difference


def _facts(metrics: RunMetrics, experiment: Experiment) -> dict[str, float]:
    return {
        "valid_auc": metrics.valid.auc,
        "valid_logloss": metrics.valid.logloss,
        "test_auc": metrics.test.auc,
        "test_logloss": metrics.test.logloss,
        "seed": experiment.training.seed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="ctr-export", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder that ctr-train wrote")
    parser.add_argument("bundle", type=Path, help="the bundle to write; an older bundle there is replaced")
    arguments = parser.parse_args()
    try:
        with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as progress:
            progress.add_task("fold, export and check against torch")
            manifest, difference = export(arguments.run, arguments.bundle)
    except (OSError, ValueError) as error:
        print(f"ctr-export: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.bundle}: {manifest.name}, version {manifest.version[:12]}")
    print(f"onnxruntime and torch differ by at most {difference:.1g} in probability, over 300 golden requests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
