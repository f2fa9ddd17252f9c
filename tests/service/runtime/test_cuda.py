"""The GPU code path: padding, binding and warm-up are tested on the CPU, and the logits on a GPU if there is one."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bundle import MODEL, open_bundle
from contract.encode import Encoder, ModelInput, join
from contract.golden import read_golden
from service.runtime.cuda import MIN_ROWS, BucketRunner, bucket, pad
from service.runtime.onnx_session import CUDA, open_graph, open_serving_graph
from tests.support.paths import DEMO


@given(rows=st.integers(0, 10_000), minimum=st.sampled_from([1, 16]))
def test_bucket_is_the_next_power_of_two(rows: int, minimum: int) -> None:
    size = bucket(rows, minimum)
    assert size >= max(rows, minimum)
    assert size & (size - 1) == 0
    assert size == minimum or size < 2 * rows


def golden_inputs() -> list[ModelInput]:
    bundle = open_bundle(DEMO)
    encoder = Encoder(bundle.schema)
    golden = read_golden(DEMO / "golden.jsonl")[:30]
    tokens = [encoder.tokens(request.context, [c.features for c in request.candidates]) for request in golden]
    return [encoder.ids(encoded, bundle.vocabularies)[0] for encoded in tokens]


@pytest.mark.parametrize("batch", [slice(0, 1), slice(0, 3), slice(0, 30)])
def test_padded_and_bound_run_gives_the_same_logits_as_a_plain_run(batch: slice) -> None:
    session = open_graph(open_bundle(DEMO), MODEL)
    feed = join(golden_inputs()[batch])
    (expected,) = session.run(["logit"], feed)
    logit = BucketRunner(session)(feed)
    assert logit.shape == expected.shape
    np.testing.assert_allclose(logit, expected, atol=1e-5)


def test_padding_keeps_all_rows_and_adds_zeros() -> None:
    feed = join(golden_inputs()[:3])
    padded = pad(feed)
    for name, array in feed.items():
        np.testing.assert_array_equal(padded[name][: len(array)], array)
        assert not padded[name][len(array) :].any()
        assert padded[name].dtype == array.dtype
    assert len(padded["context_ids"]) == 4
    assert len(padded["request_index"]) == bucket(len(feed["request_index"]), MIN_ROWS)


def test_warm_up_runs_every_shape_that_a_batch_can_have() -> None:
    seen = set()
    session = open_graph(open_bundle(DEMO), MODEL)

    class Watched(BucketRunner):
        def __call__(self, feed):  # type: ignore[no-untyped-def]
            logit = super().__call__(feed)
            padded = pad(feed)
            seen.add((len(padded["context_ids"]), len(padded["request_index"])))
            return logit

    single = next(request for request in golden_inputs() if len(request.candidate_ids) == 1)
    Watched(session).warm_up(join([single]), 50)
    assert seen == {(r, n) for n in (16, 32, 64) for r in (1, 2, 4, 8, 16, 32, 64) if r <= n}


@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA: install the extra cuda"
)
@pytest.mark.parametrize("batch", [slice(0, 1), slice(0, 3), slice(0, 30)])
def test_gpu_gives_the_same_logits_as_the_cpu(batch: slice) -> None:
    bundle, feed = open_bundle(DEMO), join(golden_inputs()[batch])
    (expected,) = open_graph(bundle, MODEL).run(["logit"], feed)
    opened = open_serving_graph(bundle, threads=1, device="cuda", strict=True)
    assert opened.device == "cuda"
    np.testing.assert_allclose(BucketRunner(opened.session)(feed), expected, atol=1e-5)
