"""Run the graphs of a bundle: requests in, probabilities out.

Legend: R requests in a batch, N candidates of all requests, concatenated.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import kernel
from contract.bundle import EXPLAIN, EXPLANATION, KERNEL, OUTPUT, SCREEN, Bundle, BundleError
from contract.calibration import Calibrator, sigmoid
from contract.encode import Encoder, ModelInput, join
from contract.golden import Difference, GoldenRequest, golden_input, largest_difference
from contract.vocabulary import UNKNOWN
from service.runtime.cascade import Screened, select_rows, surviving_rows
from service.runtime.cuda import BucketRunner
from service.runtime.onnx_session import (
    FIX_GPU,
    Device,
    EngineMissing,
    Feed,
    OpenedGraph,
    open_graph,
    open_serving_graph,
)

log = logging.getLogger(__name__)

Infer = Callable[[Feed], NDArray[np.float32]]


@dataclass(frozen=True)
class Explained:
    """The explanation of N candidates. See export/graphs/explain.py.

    Legend: L levels, B = L - 1 blocks, F fields, H heads.

    Attributes:
        logit: The model's logits before calibration. Shape (N).
        contribution: Contribution of each pair of fields at each level. Shape (N, L, F, F).
        attention: Shape (N, B, H, F, F).
        bias: Shape (N).
        calibrated: The logits after calibration. Shape (N).
    """

    logit: NDArray[np.float64]
    contribution: NDArray[np.float64]
    attention: NDArray[np.float64]
    bias: NDArray[np.float64]
    calibrated: NDArray[np.float64]

    @property
    def ctr(self) -> NDArray[np.float64]:
        """The probabilities. Shape (N)."""
        return sigmoid(self.calibrated)


class Scored(NamedTuple):
    """The scores of N candidates. Both are NaN for a candidate that a cascade rules out.

    Attributes:
        ctr: Shape: float64 (N).
        logit: The model's logits before calibration. Shape (N).
    """

    ctr: NDArray[np.float64]
    logit: NDArray[np.floating]


class Engine:
    """The opened graphs of one bundle. `run` and `explain` may be called from several threads at once.

    Attributes:
        graph: File name of the graph that `run` uses.
        device: The device that `run` uses.
        calibrator: Turns logits into probabilities.
    """

    def __init__(
        self,
        infer: Infer,
        calibrator: Calibrator,
        graph: str,
        device: Device,
        screen: Any = None,
        explain: Any = None,
    ) -> None:
        self.graph = graph
        self.device = device
        self.calibrator = calibrator
        self._infer = infer
        self._screen = screen
        self._explain = explain

    def run(self, batch: Sequence[ModelInput]) -> list[NDArray[np.float64]]:
        """Return the ctr of each request's candidates. See score()."""
        return [scored.ctr for scored in self.score(batch)]

    def score(self, batch: Sequence[ModelInput]) -> list[Scored]:
        """Return the scores of each request's candidates.

        Raises:
            FloatingPointError: A logit is not finite.
        """
        survivors = [
            surviving_rows(request, self._screen) if isinstance(request, Screened) else None for request in batch
        ]
        inputs = [
            request if rows is None else select_rows(request, rows)
            for request, rows in zip(batch, survivors, strict=True)
        ]
        feed = join(inputs)
        logit = self._infer(feed)
        if not np.isfinite(logit).all():
            raise FloatingPointError("the model's logit is not finite")
        ctr = self.calibrator.ctr(logit, feed["context_ids"], feed["request_index"])
        if len(batch) == 1 and survivors[0] is None:  # A shortcut for almost all batches.
            return [Scored(ctr, logit)]
        answers, start = [], 0
        for request, rows in zip(inputs, survivors, strict=True):
            part = slice(start, start + len(request.candidate_ids))
            start = part.stop
            scored = Scored(ctr[part], logit[part])
            answers.append(scored if rows is None else Scored(*(placed(values, rows, len(rows)) for values in scored)))
        return answers

    @property
    def kernel_lanes(self) -> int | None:
        """The largest number of candidates that the kernel scores at once, or None if another graph is in use."""
        return kernel.lanes() if self.graph == KERNEL else None

    @property
    def explains(self) -> bool:
        """Whether the bundle has an explanation graph."""
        return self._explain is not None

    def explain(self, request: ModelInput) -> Explained:
        """Explain each candidate of one request. Call this only if `explains` is True.

        Raises:
            FloatingPointError: A number in the explanation is not finite.
        """
        assert self._explain is not None
        feed = join([request])
        outputs = self._explain.run(EXPLANATION, feed)
        if not all(np.isfinite(output).all() for output in outputs):
            raise FloatingPointError("the explanation is not finite")
        logit, contribution, attention, bias = (output.astype(np.float64) for output in outputs)
        calibrated = self.calibrator.calibrated(logit, feed["context_ids"], feed["request_index"])
        return Explained(logit, contribution, attention, bias, calibrated)


def placed(
    values: NDArray[np.floating], rows: NDArray[np.bool_] | Sequence[int], candidates: int
) -> NDArray[np.float64]:
    """Return the values of all candidates of a request, with NaN for those without a value. Shape: (candidates).

    Args:
        values: A value for each of `rows`.
        rows: Positions in the request, or which of its candidates have a value.
        candidates: Number of candidates in the request.
    """
    if len(values) == candidates:  # A shortcut for almost all requests.
        return values.astype(np.float64)
    every = np.full(candidates, np.nan)
    every[rows] = values
    return every


def open_engine(
    bundle: Bundle, threads: int, device: Device = "cpu", strict: bool = False, max_rows: int = 1
) -> Engine:
    """Open all graphs of a bundle.

    Args:
        bundle: The bundle.
        threads: See `open_serving_graph`.
        device: See `open_serving_graph`.
        strict: See `open_serving_graph`.
        max_rows: Maximum number of candidates in one run. A GPU is warmed up for all sizes up to this number.

    Raises:
        EngineMissing: onnxruntime is not installed, or `strict` is set and CUDA cannot be used.
        BundleError: A file is not a valid graph, or it does not fit the schema.
    """
    opened = open_serving_graph(bundle, threads, device, strict)
    infer: Infer | None = None
    if opened.device == "cuda":
        try:
            infer = warmed_up_runner(opened, bundle, max_rows)
        except EngineMissing as error:
            if strict:
                raise
            log.warning("%s; using the CPU instead", error)
            opened = open_serving_graph(bundle, threads)
    files = bundle.manifest.files
    screen = open_graph(bundle, SCREEN) if SCREEN in files else None
    explain = open_graph(bundle, EXPLAIN, outputs=EXPLANATION) if EXPLAIN in files else None
    infer = infer or (lambda feed: opened.session.run([OUTPUT], feed)[0])
    return Engine(infer, bundle.calibrator, opened.graph, opened.device, screen, explain)


def warmed_up_runner(opened: OpenedGraph, bundle: Bundle, max_rows: int) -> BucketRunner:
    """Return a runner for a graph on a GPU, after one run with each shape. Raises EngineMissing if a run fails."""
    runner = BucketRunner(opened.session)
    try:
        runner.warm_up(join([empty_request(bundle)]), max_rows)
    except Exception as error:  # onnxruntime raises its own classes, usually when GPU memory runs out.
        raise EngineMissing(f"CTR_DEVICE=cuda, but the GPU cannot run the model ({error}): {FIX_GPU}") from error
    return runner


def empty_request(bundle: Bundle) -> ModelInput:
    """Return a request with one candidate in which every value is missing."""
    encoder = Encoder(bundle.schema)
    lookup = dict.fromkeys((field.name for field in bundle.schema.fields), lambda token: UNKNOWN)
    return encoder.ids(encoder.tokens({}, [{}]), lookup)[0]


def golden_answers(engine: Engine, bundle: Bundle) -> Callable[[GoldenRequest], list[float]]:
    """Return a function that scores a golden request on this machine.

    The function uses the service's encoder, the bundle's vocabulary, and this engine. It raises BundleError if the
    model cannot run, or if its answer is not finite.
    """
    encoder = Encoder(bundle.schema)

    def answer(golden: GoldenRequest) -> list[float]:
        model_input = golden_input(encoder, golden, bundle.vocabularies)
        try:
            (ctr,) = engine.run([model_input])
        except Exception as error:  # onnxruntime raises its own classes.
            raise BundleError(
                f"bundle {bundle.folder}: a golden request cannot be scored ({error}): export the run again"
            ) from error
        answers: list[float] = ctr.tolist()
        return answers

    return answer


def explained_difference(engine: Engine, request: ModelInput, ctr: Sequence[float]) -> Difference:
    """Return the largest difference between the exporter's ctr and the ctr computed from an explanation's sum.

    Args:
        engine: An engine that supports explanations.
        request: A golden request, encoded.
        ctr: The probabilities that the exporter recorded for the request.
    """
    explained, feed = engine.explain(request), join([request])
    summed = explained.contribution.sum((1, 2, 3)) + explained.bias
    return largest_difference(ctr, engine.calibrator.ctr(summed, feed["context_ids"], feed["request_index"]).tolist())
