"""Every model in the zoo can be trained on the generated log, exported and served."""

from pathlib import Path

import msgspec
import pytest

from contract.bundle import EXPLAIN, MODEL, open_bundle
from contract.golden import TOLERANCE, largest_difference, read_golden
from export.bundle import export
from model.experiment_config import Experiment, Training
from model.experiments.train import train
from model.zoo import MODELS
from service.app import create_app
from service.settings import Settings
from tests.support.app import JSON, TIMEOUT_MS, client_of, post
from tests.support.models import small
from tests.support.runs import DATA

SCORED = 40  # Number of golden requests to score.
# The baseline whose options name fields. Other tests export and serve STEC (tests/export/test_missing_numbers.py,
# tests/service/test_raw_timestamps.py) and FM (tests/service/scoring/test_buckets.py).
USUAL = ("finalmlp",)


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
async def test_a_model_can_be_trained_and_exported_and_reproduces_its_golden_requests(
    name: str, run_folder: Path, tmp_path: Path
) -> None:
    training = Training(epochs=1, batch_size=1024, learning_rate=0.01)
    config = small(name, context1=("user", "bid")) if name == "finalmlp" else small(name)
    experiment = Experiment(name=f"small-{name}", data=DATA, model=config, training=training)
    metrics = train(experiment, run_folder.parent, tmp_path / "run")
    assert metrics.flops is not None
    assert 0.4 < metrics.test.auc < 1
    manifest, difference = export(tmp_path / "run", tmp_path / "bundle")
    assert difference <= TOLERANCE
    assert EXPLAIN in manifest.files
    assert manifest.model == name
    golden = read_golden(tmp_path / "bundle" / "golden.jsonl")[:SCORED]
    assert len({ctr for one in golden for ctr in one.ctr or []}) > SCORED  # The scores depend on the request.
    app = create_app(Settings(bundle=tmp_path / "bundle", timeout_ms=TIMEOUT_MS))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await app.state.serving.model.scorer.readiness.tested.wait()
        assert (await client.get("/v1/model")).json()["type"] == name
        for one in golden:
            answer = await post(client, msgspec.json.encode({"context": one.context, "candidates": one.candidates}))
            assert largest_difference(one.ctr, [s["ctr"] for s in answer.json()["scores"]]).is_tolerated
        candidates = golden[0].candidates[:2]
        asked = {"context": golden[0].context, "candidates": candidates, "pairs": 200, "timeout_ms": TIMEOUT_MS}
        explained = (await client.post("/v1/explain", content=msgspec.json.encode(asked), headers=JSON)).json()
        for one, ctr in zip(explained["explanations"], golden[0].ctr, strict=False):
            assert one["bias"] + sum(pair["contribution"] for pair in one["pairs"]) + one["others"] == pytest.approx(
                one["logit"], abs=1e-4
            )
            assert one["ctr"] == pytest.approx(ctr, abs=TOLERANCE)
            if name != "stec":
                assert all(first == second for first, second in (pair["fields"] for pair in one["pairs"]))
    assert MODEL in open_bundle(tmp_path / "bundle").manifest.files
