"""The engine: correct scores, rejected graphs, and fallbacks to the CPU and to onnxruntime's own operators."""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import kernel
from contract.bundle import GOLDEN, KERNEL, MODEL, Bundle, BundleError, open_bundle, write_manifest
from contract.calibration import Calibration, sigmoid
from contract.encode import Encoder, ModelInput
from contract.golden import Difference, largest_difference, max_difference, read_golden
from service.runtime.engine import Engine, golden_answers, open_engine
from service.runtime.onnx_session import EngineMissing
from tests.support.paths import DEMO
from tests.support.small_bundle import TOKENS, WIDTH, graph


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def engine(opened: Bundle) -> Engine:
    return open_engine(opened, threads=1)


def golden_difference(engine: Engine, bundle: Bundle) -> Difference:
    answer = golden_answers(engine, bundle)
    golden = read_golden(bundle.folder / GOLDEN)
    return max_difference(largest_difference(request.ctr, answer(request)) for request in golden)


def test_golden_requests_are_reproduced(engine: Engine, opened: Bundle) -> None:
    assert golden_difference(engine, opened).is_tolerated


def test_requests_of_different_sizes_in_one_batch_do_not_mix(engine: Engine, opened: Bundle) -> None:
    golden = read_golden(opened.folder / "golden.jsonl")
    encoder = Encoder(opened.schema)
    batch: list[ModelInput] = []
    for request in golden:
        tokens = encoder.tokens(request.context, [candidate.features for candidate in request.candidates])
        batch.append(encoder.ids(tokens, opened.vocabularies)[0])
    for request, ctr in zip(golden, engine.run(batch), strict=True):
        assert largest_difference(request.ctr, ctr.tolist()).is_tolerated


def test_sigmoid_is_stable_at_both_ends() -> None:
    x = np.array([-1e4, -750.0, -40.0, 0.0, 40.0, 1e4])
    with np.errstate(all="raise", under="ignore"):
        ctr = sigmoid(x)
    assert ctr[0] == 0
    assert ctr[-1] == 1
    assert ctr[3] == 0.5
    assert ctr[2] == pytest.approx(np.exp(-40.0))


def reseal(folder: Path, model: onnx.ModelProto) -> Bundle:
    onnx.save(model, str(folder / "model.onnx"))
    write_manifest(folder, "small", 1, {}, Calibration())
    return open_bundle(folder)


def a_graph(candidate_width: int = 2) -> onnx.ModelProto:
    tables = {f"{name}_table": np.zeros((len(tokens) + 2, WIDTH), np.float32) for name, tokens in TOKENS.items()}
    return graph(tables, candidate_width)


def test_graph_with_a_wrong_width_is_refused(own_bundle: Path) -> None:
    with pytest.raises(
        BundleError, match=r"input candidate_ids is tensor\(int64\).*schema needs.*export the run again"
    ):
        open_engine(reseal(own_bundle, a_graph(candidate_width=3)), 1)


def test_graph_with_an_additional_input_is_refused(own_bundle: Path) -> None:
    model = a_graph()
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["N"]))
    with pytest.raises(BundleError, match=r"its inputs are .*more.*, but the schema needs"):
        open_engine(reseal(own_bundle, model), 1)


def test_file_that_is_not_a_graph_is_refused(own_bundle: Path) -> None:
    (own_bundle / "model.onnx").write_bytes(b"not a graph")
    write_manifest(own_bundle, "small", 1, {}, Calibration())
    with pytest.raises(BundleError, match=r"model.onnx: onnxruntime cannot open it"):
        open_engine(open_bundle(own_bundle), 1)


def test_logit_that_is_not_a_number_is_an_error(own_bundle: Path) -> None:
    tables = {f"{name}_table": np.full((len(t) + 2, WIDTH), np.nan, np.float32) for name, t in TOKENS.items()}
    engine = open_engine(reseal(own_bundle, graph(tables)), 1)
    request = ModelInput(
        np.zeros((1, 2), np.int64),
        np.zeros((3, 2), np.int64),
        np.zeros((1, 1), np.float32),
        np.zeros((3, 1), np.float32),
    )
    with pytest.raises(FloatingPointError):
        engine.run([request])


def test_missing_onnxruntime_is_reported_with_the_install_command(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineMissing, match=r"pip install '\.\[cpu\]' or '\.\[cuda\]'"):
        open_engine(opened, 1)


def test_without_cuda_a_strict_server_does_not_start_and_any_other_uses_the_cpu(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # This hides the GPU. onnxruntime then uses the CPU, and reports that only in its own log.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    why = r"CTR_DEVICE=cuda, but .*CPUExecutionProvider.*or set CTR_DEVICE=cpu"
    with pytest.raises(EngineMissing, match=why):
        open_engine(open_bundle(own_bundle), 1, "cuda", strict=True)
    assert open_engine(open_bundle(own_bundle), 1, "cuda").device == "cpu"
    assert "using the CPU instead" in caplog.text


@pytest.mark.skipif(not kernel.is_usable(), reason="the kernel is not usable here; is a C++20 compiler missing?")
def test_kernel_scores_if_it_is_usable() -> None:
    demo = open_bundle(DEMO)
    engine = open_engine(demo, 1)
    assert (engine.graph, engine.device, engine.kernel_lanes) == (KERNEL, "cpu", kernel.lanes())
    assert golden_difference(engine, demo).is_tolerated


def test_without_the_kernel_onnxruntimes_operators_are_used_and_a_message_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernel, "__file__", str(tmp_path / "__init__.py"))
    demo = open_bundle(DEMO)
    engine = open_engine(demo, 1)
    assert (engine.graph, engine.device, engine.kernel_lanes) == (MODEL, "cpu", None)
    assert "the kernel was not built" in caplog.text
    assert "using onnxruntime's own operators instead" in caplog.text
    assert golden_difference(engine, demo).is_tolerated


def test_invalid_kernel_graph_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    (folder / KERNEL).write_bytes(b"nonsense")
    manifest = open_bundle(DEMO).manifest
    write_manifest(folder, "demo", 1, {}, manifest.calibration)
    if kernel.is_usable():
        with pytest.raises(BundleError, match="onnxruntime cannot open it"):
            open_engine(open_bundle(folder), 1)


def test_explanation_that_is_not_a_number_is_an_error() -> None:
    demo = open_bundle(DEMO)
    engine = open_engine(demo, 1)
    encoder = Encoder(demo.schema)
    request = encoder.ids(encoder.tokens({}, [{}]), demo.vocabularies)[0]
    request.candidate_values[:] = np.nan
    with pytest.raises(FloatingPointError, match="explanation"):
        engine.explain(request)
