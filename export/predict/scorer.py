"""Score rows with a run or a bundle: values in, probabilities out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

import kernel
from contract.bundle import KERNEL, MODEL, OUTPUT, VOCABULARY, Bundle, BundleError, open_bundle
from contract.calibration import Calibration, Calibrator
from contract.encode import Encoder, join
from contract.reader import Features
from contract.schema import FeatureSchema
from contract.vocabulary import Vocabulary, open_vocabulary
from export.graphs.plain import PlainGraph
from export.run_calibrator import open_calibrator
from export.run_or_bundle import is_bundle
from model.data_config import Data
from model.experiments.run_folder import open_run

Feed = Mapping[str, NDArray[np.generic]]
RUN_ROWS = 1024  # rows in one run of the graph, which allocates (rows, fields, fields) numbers per attention head


@dataclass(frozen=True)
class Scorer:
    """An opened run or bundle.

    Attributes:
        folder: The folder of the run or bundle.
        schema: The schema.
        vocabularies: The vocabulary of each categorical field.
        calibrator: Converts logits to probabilities.
        graph: Computes the logits, (N), from the inputs of the serving graph.
        data: The [data] section of a run, which describes the format of its log. None for a bundle.
    """

    folder: Path
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    calibrator: Calibrator
    graph: Callable[[Feed], NDArray[np.floating]]
    data: Data | None = None

    def score(self, encoder: Encoder, rows: Sequence[Features]) -> NDArray[np.float64]:
        """Return the probability of each row, (rows).

        Args:
            encoder: An encoder for the schema.
            rows: The values of each row as a client would send them, by name. A row is a request with one candidate.

        Raises:
            ValueError: If a value is not valid for its field, or a logit is not finite.
        """
        parts = [rows[start : start + RUN_ROWS] for start in range(0, len(rows), RUN_ROWS)]
        return np.concatenate([self._score_part(encoder, part) for part in parts])

    def _score_part(self, encoder: Encoder, rows: Sequence[Features]) -> NDArray[np.float64]:
        model_input = encoder.rows(rows, rows, self.vocabularies)
        feed = {**join([model_input]), "request_index": np.arange(len(rows), dtype=np.int64)}
        logit = self.graph(feed)
        if not np.isfinite(logit).all():
            raise ValueError(f"{self.folder}: the model's logit is not finite. Train and export again.")
        return self.calibrator.ctr(logit, feed["context_ids"], feed["request_index"])


def open_scorer(folder: Path) -> Scorer:
    """Open a run for scoring by torch in float64, or a bundle for scoring by onnxruntime, as on the server.

    Raises:
        ValueError: If the folder is neither a run nor a bundle, or is damaged.
    """
    return open_bundle_scorer(folder) if is_bundle(folder) else open_run_scorer(folder)


def open_bundle_scorer(folder: Path) -> Scorer:
    """Open a bundle with its kernel if this machine can use it, otherwise with onnxruntime's own operators."""
    bundle = open_bundle(folder)
    session = open_session(bundle)

    def run(feed: Feed) -> NDArray[np.floating]:
        logit: NDArray[np.floating] = session.run([OUTPUT], feed)[0]
        return logit

    return Scorer(folder, bundle.schema, bundle.vocabularies, bundle.calibrator, run)


def open_session(bundle: Bundle) -> Any:
    """Open the bundle's graph in onnxruntime.

    Raises:
        BundleError: If the file is not a valid graph.
    """
    options, name = onnxruntime.SessionOptions(), MODEL
    if KERNEL in bundle.manifest.files and kernel.is_usable():
        kernel.register(options)
        name = KERNEL
    try:
        return onnxruntime.InferenceSession(str(bundle.folder / name), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{bundle.folder / name}: onnxruntime cannot open it ({reason}): export it again") from error


def open_run_scorer(folder: Path, use_calibration: bool = True) -> Scorer:
    """Open a run, with the calibration of its calibration.json if it has one.

    Args:
        folder: The run folder.
        use_calibration: Whether to read calibration.json. ctr-calibrate does not, because it replaces the file.

    Raises:
        ValueError: If the folder is not a run, or is damaged, or its calibration.json is not its own.
    """
    model, experiment, schema, _ = open_run(folder)
    vocabularies = {f.name: open_vocabulary(folder / VOCABULARY, f.name) for f in schema.select("categorical")}
    graph = PlainGraph(model, schema).double().eval()

    def run(feed: Feed) -> NDArray[np.floating]:
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        doubles = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
        with torch.inference_mode():
            logit: NDArray[np.floating] = graph(**doubles).numpy()
        return logit

    if use_calibration:
        calibrator = open_calibrator(folder, experiment, schema)
    else:
        calibrator = Calibrator(Calibration.of_log(experiment.data.negative_rate), None, schema)
    return Scorer(folder, schema, vocabularies, calibrator, run, experiment.data)
