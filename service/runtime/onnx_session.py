"""Open a bundle's graphs in onnxruntime, and reject graphs that do not fit the bundle's schema."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import kernel
from contract.bundle import EXPLAIN, KERNEL, MODEL, OUTPUT, STEC, Bundle, BundleError, OutOfResources, unreadable
from contract.schema import FeatureSchema
from contract.system_errors import HOW_TO_RAISE_LIMITS

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# By default, onnxruntime multiplies with TF32 on a GPU. Its 10-bit mantissa cannot match the exporter's answers.
NO_TF32 = {"use_tf32": "0"}
EXPORT_AGAIN = "export the run again"
FIX_GPU = "free GPU memory or fix the driver, or set CTR_DEVICE=cpu"

Device = Literal["cpu", "cuda"]
Feed = Mapping[str, NDArray[np.generic]]


class EngineMissing(RuntimeError):
    """onnxruntime is not installed, or cannot use the requested device. The message states how to fix it."""


@dataclass(frozen=True)
class OpenedGraph:
    """An onnxruntime session, the name of its graph's file, and the device that it runs on."""

    session: Any
    graph: str
    device: Device


def open_serving_graph(bundle: Bundle, threads: int, device: Device = "cpu", strict: bool = False) -> OpenedGraph:
    """Open the graph that scores requests.

    On a GPU this is MODEL. On the CPU it is KERNEL if the bundle has one and this machine can run it, else MODEL.

    Args:
        bundle: The bundle.
        threads: CPU threads for one run of MODEL. KERNEL uses one thread.
        device: "cuda" falls back to the CPU if CUDA cannot be used.
        strict: Raise EngineMissing instead of falling back to the CPU.

    Raises:
        EngineMissing: onnxruntime is not installed, or `strict` is set and CUDA cannot be used.
        BundleError: The file is not a valid graph, or it does not fit the schema.
    """
    if device == "cuda":
        try:
            return open_on_cuda(bundle, threads)
        except EngineMissing as error:
            if strict:
                raise
            log.warning("%s; using the CPU instead", error)
    options = session_options(threads)
    if KERNEL in bundle.manifest.files:
        try:
            kernel.register(options)
            return OpenedGraph(open_graph(bundle, KERNEL, options), KERNEL, "cpu")
        except kernel.NoKernel as error:
            log.warning("%s; using onnxruntime's own operators instead, which are slower", error)
    elif EXPLAIN in bundle.manifest.files and bundle.manifest.model == STEC:
        # The kernel supports a STEC with a linear head, and only such a model has EXPLAIN.
        log.warning(
            "the bundle has no %s because it was exported without the kernel; to serve it faster, build the kernel "
            "with `make kernel` and export the run again",
            KERNEL,
        )
    return OpenedGraph(open_graph(bundle, MODEL, session_options(threads)), MODEL, "cpu")


def open_on_cuda(bundle: Bundle, threads: int) -> OpenedGraph:
    """Open MODEL on the GPU. Raises EngineMissing if the GPU cannot be used."""
    onnxruntime = import_onnxruntime()
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # Loads CUDA and cuDNN from their own wheels, if these are installed.
    check_cuda(onnxruntime.get_available_providers())
    try:
        session = open_graph(bundle, MODEL, session_options(threads), provider=CUDA)
    except BundleError as error:
        open_graph(bundle, MODEL)  # Raises if the graph is the cause rather than the GPU.
        raise EngineMissing(f"CTR_DEVICE=cuda, but the GPU cannot be used ({error}): {FIX_GPU}") from error
    # If a driver or a library is missing, onnxruntime silently uses the CPU.
    check_cuda(session.get_providers())
    return OpenedGraph(session, MODEL, "cuda")


def check_cuda(providers: Sequence[str]) -> None:
    """Raise EngineMissing if CUDA is not among onnxruntime's execution providers."""
    if CUDA not in providers:
        raise EngineMissing(
            f"CTR_DEVICE=cuda, but onnxruntime has only {', '.join(providers)}: install the extra '.[cuda]', a GPU and "
            "its driver, or set CTR_DEVICE=cpu"
        )


def open_graph(
    bundle: Bundle, name: str, options: Any = None, outputs: Sequence[str] = (OUTPUT,), provider: str = CPU
) -> Any:
    """Open one of the bundle's graphs as an onnxruntime session.

    Args:
        bundle: The bundle.
        name: The graph's file in the bundle.
        options: onnxruntime.SessionOptions. None means `session_options(threads=1)`.
        outputs: The outputs that the graph must have.
        provider: CPU or CUDA.

    Raises:
        EngineMissing: onnxruntime is not installed.
        BundleError: The file is not a valid graph, or it does not fit the schema.
    """
    onnxruntime = import_onnxruntime()
    path = bundle.folder / name
    providers = [CPU] if provider == CPU else [(provider, NO_TF32), CPU]
    options = options or session_options(threads=1)
    try:
        path.open("rb").close()  # onnxruntime does not report that the process cannot open any more files.
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # onnxruntime raises its own classes and bare RuntimeErrors.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "bad_alloc" in reason or isinstance(error, MemoryError):
            raise OutOfResources(f"{path}: out of memory. {HOW_TO_RAISE_LIMITS}") from error
        raise BundleError(f"{path}: onnxruntime cannot open it ({reason}): {EXPORT_AGAIN}") from error
    check_graph(session, bundle.schema, path, outputs)
    return session


def import_onnxruntime() -> Any:
    """Import onnxruntime. Raises EngineMissing if it is not installed."""
    # Not imported at the top, because onnxruntime is an optional dependency (a CPU or a GPU wheel) and slow to import.
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise EngineMissing(
            "onnxruntime is not installed; install the extra: pip install '.[cpu]' or '.[cuda]'"
        ) from error
    except ImportError as error:
        raise EngineMissing(
            f"onnxruntime cannot be loaded ({error}): reinstall onnxruntime, or raise the memory limit (ulimit -v) if "
            "it is too low"
        ) from error
    return onnxruntime


def session_options(threads: int) -> Any:
    """Return the onnxruntime.SessionOptions of the service, with this many threads for one run."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # By default, onnxruntime sizes its thread pools for the host and ignores the container's CPU quota.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs would take the CPU from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # onnxruntime also raises its errors. Printing them to standard error, where each line is JSON, would break the
    # format.
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def check_graph(session: Any, schema: FeatureSchema, path: Path, outputs: Sequence[str]) -> None:
    """Raise BundleError if a graph's inputs do not fit the schema, or if an output is missing."""
    # Name -> (type, width). A width of None means a vector.
    expected: dict[str, tuple[str, int | None]] = {"request_index": ("tensor(int64)", None)}
    for side in ("context", "candidate"):
        expected[f"{side}_ids"] = ("tensor(int64)", len(schema.select("categorical", side)))
        if values := len(schema.select("numeric", side)):
            expected[f"{side}_values"] = ("tensor(float)", values)
    found = {graph_input.name: (graph_input.type, graph_input.shape) for graph_input in session.get_inputs()}
    if found.keys() != expected.keys():
        raise BundleError(
            f"{path}: its inputs are {sorted(found)}, but the schema needs {sorted(expected)}: {EXPORT_AGAIN}"
        )
    for name, (kind, width) in expected.items():
        found_kind, shape = found[name]
        if found_kind != kind or not accepts_rows(shape, width):
            needs = f"{kind}{['.'] if width is None else ['.', width]}"
            raise BundleError(
                f"{path}: input {name} is {found_kind}{shape}, but the schema needs {needs}: {EXPORT_AGAIN}"
            )
    names = {graph_output.name for graph_output in session.get_outputs()}
    for output in outputs:
        if output not in names:
            raise BundleError(f"{path}: output {output!r} is missing: {EXPORT_AGAIN}")


def accepts_rows(shape: Sequence[int | str | None], width: int | None) -> bool:
    """Return whether an input with this shape accepts any number of rows of this width.

    A dimension that is a name or None may have any size. A width of None means a vector.
    """
    if not shape or isinstance(shape[0], int):
        return False
    if width is None:
        return len(shape) == 1
    return len(shape) == 2 and (shape[1] == width or not isinstance(shape[1], int))
