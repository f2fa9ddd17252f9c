"""The GPU's path: padding, binding and the warm-up on a CPU; the answers on a GPU where there is one."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bundle import MODEL, open_bundle
from contract.encode import Encoder, ModelInput, join
from contract.golden import read_golden
from service.runtime.cuda import LEAST_ROWS, BucketRunner, bucket, pad
from service.runtime.onnx_session import CUDA, open_graph, open_serving
from tests.support.paths import DEMO


@given(rows=st.integers(0, 10_000), least=st.sampled_from([1, 16]))
def test_a_bucket_is_the_next_power_of_two(rows: int, least: int) -> None:
    size = bucket(rows, least)
    assert size >= max(rows, least)
    assert size & (size - 1) == 0
    assert size == least or size < 2 * rows


def golden_inputs() -> list[ModelInput]:
    bundle = open_bundle(DEMO)
    encoder = Encoder(bundle.schema)
    golden = read_golden(DEMO / "golden.jsonl")[:30]
    tokens = [encoder.tokens(one.context, [c.features for c in one.candidates]) for one in golden]
    return [encoder.ids(one, bundle.vocabularies)[0] for one in tokens]


@pytest.mark.parametrize("batch", [slice(0, 1), slice(0, 3), slice(0, 30)])
def test_padded_and_bound_it_answers_as_the_plain_run_does(batch: slice) -> None:
    session = open_graph(open_bundle(DEMO), MODEL)
    feed = join(golden_inputs()[batch])
    (expected,) = session.run(["logit"], feed)
    logit = BucketRunner(session)(feed)
    assert logit.shape == expected.shape
    np.testing.assert_allclose(logit, expected, atol=1e-5)


def test_padding_leaves_what_is_there_and_adds_what_every_model_knows() -> None:
    feed = join(golden_inputs()[:3])
    padded = pad(feed)
    for name, array in feed.items():
        np.testing.assert_array_equal(padded[name][: len(array)], array)
        assert not padded[name][len(array) :].any()
        assert padded[name].dtype == array.dtype
    assert len(padded["context_ids"]) == 4
    assert len(padded["request_index"]) == bucket(len(feed["request_index"]), LEAST_ROWS)


def test_the_warm_up_runs_every_shape_that_a_batch_can_have() -> None:
    seen = set()
    session = open_graph(open_bundle(DEMO), MODEL)

    class Watched(BucketRunner):
        def __call__(self, feed):  # type: ignore[no-untyped-def]
            logit = super().__call__(feed)
            padded = pad(feed)
            seen.add((len(padded["context_ids"]), len(padded["request_index"])))
            return logit

    one = next(one for one in golden_inputs() if len(one.candidate_ids) == 1)
    Watched(session).warm_up(join([one]), 50)
    assert seen == {(r, n) for n in (16, 32, 64) for r in (1, 2, 4, 8, 16, 32, 64) if r <= n}


@pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA: install the extra cuda"
)
@pytest.mark.parametrize("batch", [slice(0, 1), slice(0, 3), slice(0, 30)])
def test_a_gpu_answers_as_the_cpu_does(batch: slice) -> None:
    bundle, feed = open_bundle(DEMO), join(golden_inputs()[batch])
    (expected,) = open_graph(bundle, MODEL).run(["logit"], feed)
    opened = open_serving(bundle, threads=1, device="cuda", strict=True)
    assert opened.device == "cuda"
    np.testing.assert_allclose(BucketRunner(opened.session)(feed), expected, atol=1e-5)
