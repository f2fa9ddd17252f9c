"""The bundle's graphs as the service uses them: requests in, probabilities out.

R requests in a batch, N candidates of all of them behind each other.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.bundle import EXPLAIN, EXPLANATION, OUTPUT, SCREEN, Bundle, Calibration
from contract.encode import Encoder, ModelInput, join
from contract.golden import GoldenRequest, golden_input, largest_difference
from contract.vocabulary import UNKNOWN
from service.runtime.cascade import Screened, only, survivors_of
from service.runtime.cuda import BucketRunner
from service.runtime.onnx_session import FREE_IT, Device, EngineMissing, Feed, Opened, open_graph, open_serving

log = logging.getLogger(__name__)

Infer = Callable[[Feed], NDArray[np.float32]]


@dataclass(frozen=True)
class Explained:
    """Of N candidates, with L levels and B = L - 1 blocks: see export/graphs/explain.py. logit, bias (N),
    contribution (N, L, F, F), attention (N, B, H, F, F)."""

    logit: NDArray[np.float64]
    contribution: NDArray[np.float64]
    attention: NDArray[np.float64]
    bias: NDArray[np.float64]


class Engine:
    """`run` and `explain` may be called from several threads at once. graph, device: what `run` runs, and on what."""

    def __init__(
        self,
        infer: Infer,
        calibration: Calibration,
        graph: str,
        device: Device,
        screen: Any = None,
        explain: Any = None,
    ) -> None:
        self.graph = graph
        self.device = device
        self.calibration = calibration
        self._infer = infer
        self._screen = screen
        self._explain = explain

    def run(self, batch: Sequence[ModelInput]) -> list[NDArray[np.float64]]:
        """The ctr of each request's candidates; NaN for those that a Screened request's first level rules out.

        Raises:
            FloatingPointError: when the model answers with something that is no number.
        """
        kept = [survivors_of(one, self._screen) if isinstance(one, Screened) else None for one in batch]
        inputs = [one if rows is None else only(one, rows) for one, rows in zip(batch, kept, strict=True)]
        logit = self._infer(join(inputs))
        if not np.isfinite(logit).all():
            raise FloatingPointError("the model's logit is not finite")
        if len(batch) == 1 and kept[0] is None:  # nearly all of them
            return [self.calibration.ctr(logit)]
        sizes = [len(one.candidate_ids) for one in inputs]
        answers = np.split(self.calibration.ctr(logit), np.cumsum(sizes[:-1]))
        return [ctr if rows is None else _spread(ctr, rows) for ctr, rows in zip(answers, kept, strict=True)]

    @property
    def explains(self) -> bool:
        return self._explain is not None

    def explain(self, request: ModelInput) -> Explained:
        """Of each candidate of one request. Only where `explains`.

        Raises:
            FloatingPointError: when the model answers with something that is no number.
        """
        assert self._explain is not None
        outputs = self._explain.run(EXPLANATION, join([request]))
        if not all(np.isfinite(output).all() for output in outputs):
            raise FloatingPointError("the explanation is not finite")
        return Explained(*(output.astype(np.float64) for output in outputs))


def _spread(ctr: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    whole = np.full(len(rows), np.nan)
    whole[rows] = ctr
    return whole


def open_engine(
    bundle: Bundle, threads: int, device: Device = "cpu", strict: bool = False, max_rows: int = 1
) -> Engine:
    """Open all graphs of a bundle.

    threads, device, strict: see service/runtime/onnx_session.py. max_rows: the largest number of candidates in a run,
    which a GPU warms up with.

    Raises:
        EngineMissing: when onnxruntime is not installed, or cannot use CUDA although it must.
        BundleError: when a graph is no graph, or does not fit the schema.
    """
    opened = open_serving(bundle, threads, device, strict)
    infer: Infer | None = None
    if opened.device == "cuda":
        try:
            infer = _on_cuda(opened, bundle, max_rows)
        except EngineMissing as error:
            if strict:
                raise
            log.warning("%s; going on with the CPU", error)
            opened = open_serving(bundle, threads)
    files = bundle.manifest.files
    screen = open_graph(bundle, SCREEN) if SCREEN in files else None
    explain = open_graph(bundle, EXPLAIN, outputs=EXPLANATION) if EXPLAIN in files else None
    infer = infer or (lambda feed: opened.session.run([OUTPUT], feed)[0])
    return Engine(infer, bundle.manifest.calibration, opened.graph, opened.device, screen, explain)


def _on_cuda(opened: Opened, bundle: Bundle, max_rows: int) -> Infer:
    runner = BucketRunner(opened.session)
    try:
        runner.warm_up(join([nothing(bundle)]), max_rows)
    except Exception as error:  # onnxruntime's own classes: no memory, above all
        raise EngineMissing(f"CTR_DEVICE=cuda, but the GPU cannot run the model ({error}): {FREE_IT}") from error
    return runner


def nothing(bundle: Bundle) -> ModelInput:
    """A request of one candidate, all missing."""
    encoder = Encoder(bundle.schema)
    nowhere = dict.fromkeys((field.name for field in bundle.schema.fields), lambda token: UNKNOWN)
    return encoder.ids(encoder.tokens({}, [{}]), nowhere)[0]


def golden_answers(engine: Engine, bundle: Bundle) -> Callable[[GoldenRequest], list[float]]:
    """What answers a golden request on this machine: the service's encoder, the bundle's vocabulary, this engine."""
    encoder = Encoder(bundle.schema)

    def answer(one: GoldenRequest) -> list[float]:
        ctr: list[float] = engine.run([golden_input(encoder, one, bundle.vocabularies)])[0].tolist()
        return ctr

    return answer


def explained_difference(engine: Engine, one: ModelInput, ctr: Sequence[float]) -> float:
    """The largest difference between what the explanation says and the exporter's answers, for one golden request."""
    explained = engine.explain(one)
    summed = explained.contribution.sum((1, 2, 3)) + explained.bias
    return largest_difference(ctr, engine.calibration.ctr(summed).tolist())
