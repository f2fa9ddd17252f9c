"""The serving graph: requests in, probabilities out.

R requests in a batch, N candidates of all of them behind each other.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contract.bundle import MODEL, Bundle, BundleError, Calibration
from contract.encode import Encoder, ModelInput, join
from contract.golden import GoldenRequest, largest_difference
from contract.schema import FeatureSchema

OUTPUT = "logit"
AGAIN = "export the run again"


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA, CPU]}


class EngineMissing(RuntimeError):
    """onnxruntime is not installed, or cannot use what it is told to. The message says the way out."""


class Engine:
    """One onnxruntime session. `run` may be called from several threads at once."""

    def __init__(self, session: Any, calibration: Calibration) -> None:
        self._session = session
        self._calibration = calibration

    def run(self, batch: Sequence[ModelInput]) -> list[NDArray[np.float64]]:
        """The ctr of each request's candidates.

        Raises:
            FloatingPointError: when the model answers with something that is no number.
        """
        sizes = [len(one.candidate_ids) for one in batch]
        (logit,) = self._session.run([OUTPUT], join(batch))
        if not np.isfinite(logit).all():
            raise FloatingPointError("the model's logit is not finite")
        ctr = self._calibration.ctr(logit)
        return np.split(ctr, np.cumsum(sizes[:-1]))


def open_engine(bundle: Bundle, threads: int, provider: Literal["cpu", "cuda"] = "cpu") -> Engine:
    """Opens model.onnx; one run uses `threads` threads of the CPU.

    Raises:
        EngineMissing: when onnxruntime is not installed, or cannot use CUDA although `provider` says so.
        BundleError: when the graph is no graph, or does not fit the schema.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(
            "onnxruntime is not installed; install the extra: pip install '.[cpu]' or '.[cuda]'"
        ) from error
    _check_provider(provider, onnxruntime.get_available_providers())
    path = bundle.folder / MODEL
    try:
        session = onnxruntime.InferenceSession(
            str(path), sess_options=_options(onnxruntime, threads), providers=PROVIDERS[provider]
        )
    except Exception as error:  # onnxruntime raises its own classes and bare RuntimeErrors
        raise BundleError(f"{path}: onnxruntime cannot open it ({_first_line(error)}): export the run again") from error
    # It goes on with the CPU where a driver or a library is missing.
    _check_provider(provider, session.get_providers())
    _check_graph(session, bundle.schema, path)
    return Engine(session, bundle.manifest.calibration)


def _check_provider(provider: str, found: Sequence[str]) -> None:
    if PROVIDERS[provider][0] not in found:
        raise EngineMissing(
            f"CTR_PROVIDER={provider}, but onnxruntime has only {', '.join(found)}: install the extra '.[{provider}]' "
            "and what it needs (for cuda: a GPU, its driver, CUDA and cuDNN), or set CTR_PROVIDER=cpu"
        )


def golden_answers(engine: Engine, bundle: Bundle) -> Callable[[GoldenRequest], list[float]]:
    """What answers a golden request on this machine: the service's encoder, the bundle's vocabulary, this engine."""
    # Never strict: a tenth of the golden values is missing on purpose.
    encoder = Encoder(bundle.schema)

    def answer(one: GoldenRequest) -> list[float]:
        tokens = encoder.tokens(one.context, [candidate.features for candidate in one.candidates])
        ctr: list[float] = engine.run([encoder.ids(tokens, bundle.vocabularies)[0]])[0].tolist()
        return ctr

    return answer


def golden_difference(answer: Callable[[GoldenRequest], Sequence[float]], golden: Sequence[GoldenRequest]) -> float:
    """The largest difference between the answers and the exporter's."""
    return max(largest_difference(one.ctr, answer(one)) for one in golden)


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    # onnxruntime would size its pools to the host, not to the container.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs take the core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def _check_graph(session: Any, schema: FeatureSchema, path: Path) -> None:
    expected = _expected_inputs(schema)
    found = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    if found.keys() != expected.keys():
        raise BundleError(f"{path}: its inputs are {sorted(found)}, the schema needs {sorted(expected)}: {AGAIN}")
    for name, (kind, width) in expected.items():
        found_kind, shape = found[name]
        if found_kind != kind or not _fits(shape, width):
            needs = f"{kind}{['.'] if width is None else ['.', width]}"
            raise BundleError(f"{path}: input {name} is {found_kind}{shape}, the schema needs {needs}: {AGAIN}")
    if OUTPUT not in {o.name for o in session.get_outputs()}:
        raise BundleError(f"{path}: has no output {OUTPUT!r}: {AGAIN}")


def _fits(shape: Sequence[int | str | None], width: int | None) -> bool:
    """Whether a graph's input takes any number of rows, of this width. A name or None is any size."""
    rows_are_free = len(shape) > 0 and not isinstance(shape[0], int)
    if width is None:
        return rows_are_free and len(shape) == 1
    return rows_are_free and len(shape) == 2 and (shape[1] == width or not isinstance(shape[1], int))


def _expected_inputs(schema: FeatureSchema) -> dict[str, tuple[str, int | None]]:
    """Name -> (type, width); a width of None is a vector."""
    expected: dict[str, tuple[str, int | None]] = {"request_index": ("tensor(int64)", None)}
    for side in ("context", "candidate"):
        expected[f"{side}_ids"] = ("tensor(int64)", len(schema.select("categorical", side)))
        if values := len(schema.select("numeric", side)):
            expected[f"{side}_values"] = ("tensor(float)", values)
    return expected


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
