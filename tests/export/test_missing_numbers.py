"""Missing numbers from the log to the server, in a log whose clicks depend on whether the bid is missing."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import polars as pl
import pytest

import kernel
from contract.bundle import EXPLAIN, GOLDEN, KERNEL, MODEL, SCREEN, Bundle, open_bundle
from contract.encode import Encoder, ModelInput, join
from contract.golden import TOLERANCE, GoldenRequest, largest_difference, read_golden
from export.bundle import export
from export.explain.case import Case, drawn_cases
from export.explain.explanation import open_explainer
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import read_prepared
from model.experiment_config import Experiment, Training
from model.experiments.run_folder import WEIGHTS, open_run
from model.experiments.train import train
from model.stec.stec import STECConfig
from service.app import create_app
from service.runtime.cuda import BucketRunner
from service.runtime.engine import empty_request, golden_answers, open_engine
from service.settings import Settings
from tests.support.app import JSON, TIMEOUT_MS, client_of, post
from tests.support.runs import NUMBERS, with_first_level_only
from tests.support.sharing import made_once

MEAN = msgspec.structs.replace(NUMBERS, prepared="prepared-mean", missing_number="mean")
ROWS = {"train": 6_000, "valid": 1_500, "test": 3_000}
SHARE_MISSING, RATE_IF_MISSING, RATE = 0.4, 0.8, 0.1


def a_log(rows: int, seed: int) -> pl.DataFrame:
    """Return rows in which ads without a bid are clicked more often. A third of the other bids equal the mean."""
    random = np.random.default_rng(seed)
    is_missing = random.random(rows) < SHARE_MISSING
    bid = pl.Series(random.integers(1, 4, rows).astype(np.float64)).set(pl.Series(is_missing), None)
    return pl.DataFrame(
        {
            "click": (random.random(rows) < np.where(is_missing, RATE_IF_MISSING, RATE)).astype(np.int8),
            "place": random.integers(5, size=rows).astype(str),
            "depth": random.normal(4, 2, rows).round(2),  # never missing
            "ad": random.integers(20, size=rows).astype(str),
            "bid": bid,
        }
    )


@pytest.fixture(scope="module")
def root(shared_folder: Path) -> Path:
    """A folder with the log, a run with missing vectors, and a run that replaces a missing number with the mean."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for seed, (split, rows) in enumerate(ROWS.items()):
            a_log(rows, seed).write_csv(folder / f"{split}.csv")
        for data, name in ((NUMBERS, "vector"), (MEAN, "mean")):
            prepare(folder, data)
            size = STECConfig(embedding=8, blocks=2, heads=2, ffn=16, embedding_std=0.1)
            training = Training(epochs=3, batch_size=256, learning_rate=0.01, unknown_rate=0.05)
            train(Experiment(name=name, data=data, model=size, training=training), folder, folder / name)

    return made_once(shared_folder / "missing-numbers", make)


@pytest.fixture(scope="module")
def run(root: Path, shared_folder: Path) -> Path:
    """The run with missing vectors. Its first level has most of the weight, so that its bundle has a cascade."""
    return made_once(
        shared_folder / "missing-numbers-run", lambda folder: with_first_level_only(root / "vector", folder)
    )


@pytest.fixture(scope="module")
def bundle(root: Path, run: Path, shared_folder: Path) -> Bundle:
    """The bundle of `run`, with every graph."""
    prepared = read_prepared(root / NUMBERS.prepared)
    return open_bundle(
        made_once(shared_folder / "missing-numbers-bundle", lambda folder: export(run, folder, prepared))
    )


def test_the_vector_tells_a_missing_number_from_the_mean(root: Path) -> None:
    """If a missing bid is replaced with the mean, it looks like a bid of 2, so the model cannot rank the two."""
    auc = {name: open_run(root / name)[3].test.auc for name in ("vector", "mean")}
    assert auc["vector"] > 0.83
    assert auc["mean"] < 0.78


def test_a_run_without_missing_vectors_has_the_weights_of_older_runs(root: Path) -> None:
    with_vector, without = (open_run(root / name)[0] for name in ("vector", "mean"))
    assert {*with_vector.state_dict()} - {*without.state_dict()} == {"embedding.beta"}
    assert (root / "mean" / WEIGHTS).is_file()
    assert "missing_vector" not in (root / "mean" / "schema.json").read_text()


def test_the_vector_of_a_field_that_is_never_missing_in_train_is_trained(root: Path) -> None:
    """Training hides 5% of the depths. Depth does not affect clicks, so a missing depth scores like an average one."""
    explainer = open_explainer(root / "vector")

    def logit(depth: float | None) -> float:
        return explainer.explain(Case(1, {"place": "1", "depth": depth}, {"ad": "3", "bid": 1})).logit

    usual = [logit(depth) for depth in (2, 3, 4, 5, 6)]
    assert min(usual) - 0.5 < logit(None) < max(usual) + 0.5


def test_without_hidden_numbers_a_field_that_is_never_missing_in_train_uses_the_mean(
    root: Path, tmp_path: Path
) -> None:
    training = Training(epochs=1, batch_size=256, learning_rate=0.01, unknown_rate=0)
    train(Experiment(name="x", data=NUMBERS, model=STECConfig(embedding=8), training=training), root, tmp_path / "run")
    model, _, schema, _ = open_run(tmp_path / "run")
    beta = dict(zip([f.name for f in schema.select("numeric")], model.state_dict()["embedding.beta"], strict=True))
    assert (beta["depth"] == 0).all()
    assert (beta["bid"] != 0).all()


def golden_inputs(bundle: Bundle) -> list[tuple[GoldenRequest, ModelInput]]:
    encoder = Encoder(bundle.schema)
    read = []
    for request in read_golden(bundle.folder / GOLDEN):
        tokens = encoder.tokens(request.context, [candidate.features for candidate in request.candidates])
        read.append((request, encoder.ids(tokens, bundle.vocabularies)[0]))
    return read


def test_golden_requests_contain_missing_numbers_and_every_graph_reproduces_them(bundle: Bundle) -> None:
    inputs = golden_inputs(bundle)
    values = np.concatenate([one.candidate_values for _, one in inputs])
    assert 0.07 < np.isnan(values).mean() < 0.13
    assert {MODEL, EXPLAIN, SCREEN} <= bundle.manifest.files.keys()
    for graph in [name for name in (MODEL, KERNEL, EXPLAIN) if name in bundle.manifest.files]:
        options = onnxruntime.SessionOptions()
        if graph == KERNEL:
            kernel.register(options)
        session = onnxruntime.InferenceSession(str(bundle.folder / graph), options)
        for request, one in inputs[:50]:
            feed = join([one])
            logit = session.run(["logit"], feed)[0]
            ctr = bundle.calibrator.ctr(logit, feed["context_ids"], feed["request_index"])
            assert largest_difference(request.ctr, ctr.tolist()).is_tolerated


def test_requests_with_missing_numbers_can_share_a_batch(bundle: Bundle) -> None:
    engine, inputs = open_engine(bundle, threads=1), golden_inputs(bundle)[:40]
    for (request, _), ctr in zip(inputs, engine.run([one for _, one in inputs]), strict=True):
        assert largest_difference(request.ctr, ctr.tolist()).is_tolerated
    answer = golden_answers(engine, bundle)
    assert largest_difference(inputs[0][0].ctr, answer(inputs[0][0])).is_tolerated


def test_padding_and_warm_up_for_a_gpu_accept_missing_numbers(bundle: Bundle) -> None:
    empty = empty_request(bundle)
    assert np.isnan(empty.context_values).all()
    assert np.isnan(empty.candidate_values).all()
    session = onnxruntime.InferenceSession(str(bundle.folder / MODEL))
    runner = BucketRunner(session)
    runner.warm_up(join([empty]), 16)
    feed = join([one for _, one in golden_inputs(bundle)[:3]])
    assert np.isnan(feed["candidate_values"]).any()
    np.testing.assert_allclose(runner(feed), session.run(["logit"], feed)[0], atol=1e-5)


def test_a_run_and_its_bundle_explain_missing_numbers_alike(run: Path, bundle: Bundle) -> None:
    of_run, of_bundle = open_explainer(run), open_explainer(bundle.folder)
    case = Case(1, {"place": "1", "depth": None}, {"ad": "3", "bid": None})
    one, other = of_run.explain(case), of_bundle.explain(case)
    np.testing.assert_allclose(one.contribution, other.contribution, rtol=0, atol=1e-5)
    assert one.contribution.sum() + one.bias == pytest.approx(one.logit, abs=1e-5)
    bid = one.fields.index("bid")
    known = of_run.explain(Case(1, case.context, {"ad": "3", "bid": 2}))
    gain = one.both_orders()[:, bid].sum() - known.both_orders()[:, bid].sum()
    assert gain > 1  # The true log-odds of a click differ by 3.6.
    assert (one.values[bid], known.values[bid]) == ("(missing)", "2")


def test_sampled_cases_have_the_fewest_missing_numbers(root: Path) -> None:
    explainer = open_explainer(root / "vector")
    cases = drawn_cases(explainer.schema, explainer.vocabularies, 300)
    counts = [sum("missing" in v or "unknown" in v for v in explainer.explain(case).values) for case in cases]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


async def test_the_service_scores_explains_and_screens_missing_numbers(bundle: Bundle) -> None:
    ads = [{"id": str(n), "features": {"ad": str(n % 20), "bid": None if n % 3 else 1 + n % 2}} for n in range(60)]
    request: dict[str, Any] = {"context": {"place": "2"}, "candidates": ads, "timeout_ms": TIMEOUT_MS}
    app = create_app(Settings(bundle=bundle.folder, timeout_ms=TIMEOUT_MS))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.serving.model.scorer.readiness.tested.wait()
        everything = (await post(client, json.dumps(request))).json()
        ctr = {score["id"]: score["ctr"] for score in everything["scores"]}
        assert min(ctr[str(n)] for n in range(60) if n % 3) > max(ctr[str(n)] for n in range(0, 60, 3))
        best = (await post(client, json.dumps(request | {"top_k": 1, "cascade": True}))).json()
        assert best["scored_in_full"] < 60
        assert best["scores"][0]["ctr"] == pytest.approx(max(ctr.values()), abs=1e-3)
        few = request | {"candidates": ads[:2], "pairs": 200}
        answer = await client.post("/v1/explain", content=json.dumps(few), headers=JSON)
        for one in answer.json()["explanations"]:
            total = one["bias"] + sum(pair["contribution"] for pair in one["pairs"]) + one["others"]
            assert total == pytest.approx(one["logit"], abs=1e-4)
            assert one["ctr"] == pytest.approx(ctr[one["id"]], abs=TOLERANCE)
