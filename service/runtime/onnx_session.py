"""Opens a bundle's graphs in onnxruntime, and refuses those that do not fit its schema."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import kernel
from contract.bundle import EXPLAIN, KERNEL, MODEL, OUTPUT, STEC, Bundle, BundleError
from contract.schema import FeatureSchema

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NO_TF32 = {"use_tf32": "0"}  # onnxruntime rounds a GPU's products to ten bits unless told: not what was exported
AGAIN = "export the run again"
FREE_IT = "free its memory or mend its driver, or set CTR_DEVICE=cpu"

Device = Literal["cpu", "cuda"]
Feed = Mapping[str, NDArray[np.generic]]


class EngineMissing(RuntimeError):
    """onnxruntime is not installed, or cannot use what it is told to. The message says the way out."""


@dataclass(frozen=True)
class Opened:
    """A session, and what runs it: the file's name and the device."""

    session: Any
    graph: str
    device: Device


def open_serving(bundle: Bundle, threads: int, device: Device = "cpu", strict: bool = False) -> Opened:
    """The graph that scores: MODEL on a GPU; on the CPU KERNEL where it can be, MODEL elsewhere.

    threads: of the CPU in one run of MODEL; KERNEL takes one. Without CUDA a device of "cuda" falls back to the CPU.

    Raises:
        EngineMissing: when onnxruntime is not installed, or CUDA cannot be used and `strict` says that it must.
        BundleError: when the graph is no graph, or does not fit the schema.
    """
    onnxruntime = _onnxruntime()
    if device == "cuda":
        try:
            return _on_cuda(onnxruntime, bundle, threads)
        except EngineMissing as error:
            if strict:
                raise
            log.warning("%s; going on with the CPU", error)
    options = _options(onnxruntime, threads)
    if KERNEL in bundle.manifest.files:
        try:
            kernel.register(options)
            return Opened(open_graph(bundle, KERNEL, options), KERNEL, "cpu")
        except kernel.NoKernel as error:
            log.warning("%s; going on with onnxruntime's own operators, which are slower", error)
    elif EXPLAIN in bundle.manifest.files and bundle.manifest.model == STEC:  # it has a linear head
        log.warning("the bundle has no %s, it was exported without a kernel: export the run again where it is", KERNEL)
    return Opened(open_graph(bundle, MODEL, _options(onnxruntime, threads)), MODEL, "cpu")


def open_graph(
    bundle: Bundle, name: str, options: Any = None, outputs: Sequence[str] = (OUTPUT,), provider: str = CPU
) -> Any:
    """One of the bundle's graphs; raises as open_serving()."""
    onnxruntime = _onnxruntime()
    path = bundle.folder / name
    providers = [CPU] if provider == CPU else [(provider, NO_TF32), CPU]
    options = options or _options(onnxruntime, threads=1)
    try:
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime raises its own classes and bare RuntimeErrors
        raise BundleError(f"{path}: onnxruntime cannot open it ({_first_line(error)}): {AGAIN}") from error
    _check_graph(session, bundle.schema, path, outputs)
    return session


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineMissing(
            "onnxruntime is not installed; install the extra: pip install '.[cpu]' or '.[cuda]'"
        ) from error
    return onnxruntime


def _on_cuda(onnxruntime: Any, bundle: Bundle, threads: int) -> Opened:
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their own wheels, if they are there
    _check_cuda(onnxruntime.get_available_providers())
    try:
        session = open_graph(bundle, MODEL, _options(onnxruntime, threads), provider=CUDA)
    except BundleError as error:
        open_graph(bundle, MODEL)  # what is wrong with the graph itself is no fault of the GPU's
        raise EngineMissing(f"CTR_DEVICE=cuda, but the GPU cannot be used ({error}): {FREE_IT}") from error
    _check_cuda(session.get_providers())  # it goes on with the CPU where a driver or a library is missing
    return Opened(session, MODEL, "cuda")


def _check_cuda(found: Sequence[str]) -> None:
    if CUDA not in found:
        raise EngineMissing(
            f"CTR_DEVICE=cuda, but onnxruntime has only {', '.join(found)}: install the extra '.[cuda]' and what it "
            "needs (a GPU and its driver), or set CTR_DEVICE=cpu"
        )


def _options(onnxruntime: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    # onnxruntime would size its pools to the host, not to the container.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs take the core from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what it says on standard error it raises as well, and there each line is JSON
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def _check_graph(session: Any, schema: FeatureSchema, path: Path, outputs: Sequence[str]) -> None:
    expected = _expected_inputs(schema)
    found = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    if found.keys() != expected.keys():
        raise BundleError(f"{path}: its inputs are {sorted(found)}, the schema needs {sorted(expected)}: {AGAIN}")
    for name, (kind, width) in expected.items():
        found_kind, shape = found[name]
        if found_kind != kind or not _fits(shape, width):
            needs = f"{kind}{['.'] if width is None else ['.', width]}"
            raise BundleError(f"{path}: input {name} is {found_kind}{shape}, the schema needs {needs}: {AGAIN}")
    for output in outputs:
        if output not in {o.name for o in session.get_outputs()}:
            raise BundleError(f"{path}: has no output {output!r}: {AGAIN}")


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
