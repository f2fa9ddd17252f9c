"""Explanations: a run and its bundle give the same results, the numbers add up, and the plots are complete."""

import asyncio
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from safetensors.torch import save_file

from contract.bundle import EXPLAIN, GOLDEN, MANIFEST, write_manifest
from contract.calibration import Calibration
from contract.golden import read_golden
from contract.schema import FeatureSchema
from export.cli.explain import main
from export.explain.case import Case, drawn_cases, request_cases
from export.explain.explanation import Explainer, Explanation, open_explainer
from export.explain.picture import DPI, MAX_ROWS, draw
from export.explain.report import NUMBERS, write
from model.experiments.run_check import METRICS
from model.experiments.run_folder import EXPERIMENT, WEIGHTS, open_run
from model.stec.stec import STEC, STECConfig, stec_for
from service.app import create_app
from service.settings import Settings
from tests.support.runs import copy_to_change

CONTEXT = {"device": "phone", "hour": 21, "session_depth": 2}
REQUEST = {
    "context": CONTEXT,
    "candidates": [
        {"id": "ad-7", "features": {"ad": "ad-7", "format": "video", "bid": 1.2}},
        {"id": 8, "features": {"ad": "never seen", "format": "text", "bid": None}},
    ],
}


@pytest.fixture(scope="module")
def mlp_run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("mlp") / "run"
    copy_to_change(run_folder, run)
    model, experiment, schema, _ = open_run(run)
    assert isinstance(model, STEC)
    assert isinstance(experiment.model, STECConfig)
    size = msgspec.structs.replace(experiment.model, mlp=(8,))
    (run / EXPERIMENT).write_bytes(msgspec.json.encode(msgspec.structs.replace(experiment, model=size)))
    sizes = [*model.embedding.offsets.diff().tolist()]
    sizes.append(len(model.embedding.table.weight) - sum(sizes))
    save_file(stec_for(schema, sizes, size).state_dict(), run / WEIGHTS)
    return run


@pytest.fixture(scope="module")
def explainer(run_folder: Path) -> Explainer:
    return open_explainer(run_folder)


def request_file(folder: Path, request: Any = REQUEST) -> Path:
    path = folder / "request.json"
    path.write_text(request if isinstance(request, str) else json.dumps(request))
    return path


def invented(fields: int = 4, blocks: int = 2, heads: int = 2, **changes: Any) -> Explanation:
    random = np.random.default_rng(fields)
    contribution = random.normal(size=(blocks + 1, fields, fields))
    attention = random.dirichlet(np.ones(fields), (blocks, heads, fields))
    names, values = [f"field_{n}" for n in range(fields)], [f"value {n}" for n in range(fields)]
    logit = float(contribution.sum()) - 1
    whole = Explanation("ad-7", names, values, 0.2, logit, logit, -1.0, contribution, attention)
    return Explanation(**{**vars(whole), **changes})


@pytest.mark.numeric
def test_a_run_and_its_bundle_give_the_same_explanation(explainer: Explainer, bundle_folder: Path) -> None:
    of_bundle = open_explainer(bundle_folder)
    for case in drawn_cases(explainer.schema, explainer.vocabularies, 20):
        one, other = explainer.explain(case), of_bundle.explain(case)
        assert (one.fields, one.values) == (other.fields, other.values)
        for name in ("ctr", "logit", "calibrated_logit", "bias", "contribution", "attention"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5)


@pytest.mark.numeric
def test_contributions_and_bias_add_up_to_the_logit_and_the_logit_to_the_ctr(explainer: Explainer) -> None:
    for case in drawn_cases(explainer.schema, explainer.vocabularies, 20):
        explanation = explainer.explain(case)
        assert explanation.contribution.sum() + explanation.bias == pytest.approx(explanation.logit, abs=1e-5)
        # The generated log kept half of its negatives.
        assert explanation.calibrated_logit == pytest.approx(explanation.logit + math.log(0.5))
        assert explanation.ctr == pytest.approx(1 / (1 + math.exp(-(explanation.logit + math.log(0.5)))), abs=1e-9)


def test_a_sampled_case_has_the_probability_stored_in_the_bundle(bundle_folder: Path) -> None:
    explainer = open_explainer(bundle_folder)
    golden = read_golden(bundle_folder / GOLDEN)
    for case in drawn_cases(explainer.schema, explainer.vocabularies, 10):
        line, candidate = str(case.id).removeprefix("golden-").split("-", 1)
        one = golden[int(line) - 1]
        at = [c.id for c in one.candidates].index(candidate)
        assert (case.context, case.features) == (one.context, one.candidates[at].features)
        assert explainer.explain(case).ctr == pytest.approx(one.ctr[at], abs=1e-5)


def test_a_number_that_means_missing_is_shown_as_the_model_reads_it(explainer: Explainer) -> None:
    fields = (msgspec.structs.replace(f, missing=("-1.0",)) if f.name == "bid" else f for f in explainer.schema.fields)
    marked = dataclasses.replace(explainer, schema=FeatureSchema(tuple(fields)))
    at = [field.name for field in marked.schema.in_serving_order()].index("bid")
    shown = {bid: marked.explain(Case(1, CONTEXT, {"ad": "ad-7", "bid": bid})).values[at] for bid in (-1, 1.5, None)}
    assert shown == {-1: "(missing)", 1.5: "1.5", None: "(missing)"}


def test_sampled_cases_have_the_fewest_missing_and_unknown_values(explainer: Explainer) -> None:
    def lacking(case: Case) -> int:
        return sum("missing" in value or "unknown" in value for value in explainer.explain(case).values)

    counts = [lacking(case) for case in drawn_cases(explainer.schema, explainer.vocabularies, 300)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.parametrize("count", [0, -1, 301])
def test_an_out_of_range_number_of_cases_is_an_error(explainer: Explainer, count: int) -> None:
    with pytest.raises(ValueError, match="Choose a number from 1 to 300"):
        drawn_cases(explainer.schema, explainer.vocabularies, count)


async def test_the_service_gives_the_same_explanation(bundle_folder: Path, tmp_path: Path) -> None:
    app = create_app(Settings(bundle=bundle_folder))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ctr")
    async with app.router.lifespan_context(app), client:
        await asyncio.wait_for(app.state.serving.model.scorer.readiness.tested.wait(), 60)
        answer = await client.post("/v1/explain", json=REQUEST | {"pairs": 10_000, "timeout_ms": 10_000})
    explainer = open_explainer(bundle_folder)
    cases = request_cases(request_file(tmp_path))
    for case, served in zip(cases, answer.json()["explanations"], strict=True):
        explained = explainer.explain(case)
        assert (served["id"], served["ctr"]) == (case.id, pytest.approx(explained.ctr, abs=1e-6))
        for pair, as_served in zip(explained.pairs(), served["pairs"], strict=True):
            assert as_served["fields"] == [explained.fields[pair.first], explained.fields[pair.second]]
            assert as_served["levels"] == pytest.approx(pair.by_level.tolist(), abs=1e-6)


def test_every_pair_occurs_once_and_the_largest_is_first() -> None:
    explanation = invented(fields=7)
    pairs = explanation.pairs()
    sizes = [abs(pair.contribution) for pair in pairs]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted((pair.first, pair.second) for pair in pairs) == [(i, j) for i in range(7) for j in range(i, 7)]
    assert sum(pair.contribution for pair in pairs) == pytest.approx(explanation.contribution.sum())


def test_a_pair_is_the_sum_of_both_orders_and_a_field_with_itself_counts_once() -> None:
    contribution = np.array([[[1.0, 2.0], [30.0, 400.0]], [[0.5, 0.0], [0.0, 0.0]]])
    pairs = invented(fields=2, contribution=contribution).pairs()
    assert [(p.first, p.second, p.by_level.tolist()) for p in pairs] == [
        (1, 1, [400.0, 0.0]),
        (0, 1, [32.0, 0.0]),
        (0, 0, [1.0, 0.5]),
    ]


def test_values_are_shown_as_the_model_reads_them(explainer: Explainer, tmp_path: Path) -> None:
    known, strange = [explainer.explain(case) for case in request_cases(request_file(tmp_path))]
    shown = dict(zip(strange.fields, strange.values, strict=True))
    assert (shown["device"], shown["hour"], shown["session_depth"]) == ("phone", "21", "2")
    assert (shown["ad"], shown["bid"], shown["user"]) == ("(unknown) never seen", "(missing)", "(missing)")
    assert dict(zip(known.fields, known.values, strict=True))["bid"] == "1.2"


def test_a_candidate_is_chosen_by_its_id(tmp_path: Path) -> None:
    path = request_file(tmp_path)
    assert [case.id for case in request_cases(path)] == ["ad-7", 8]
    assert [case.id for case in request_cases(path, "8")] == [8]
    with pytest.raises(ValueError, match=r"'ad-9'.*ad-7, 8"):
        request_cases(path, "ad-9")


def test_keys_that_only_the_server_uses_are_allowed(tmp_path: Path) -> None:
    answering = {"timeout_ms": 20, "on_bad_candidate": "skip", "top_k": 3, "cascade": True, "pairs": 3}
    assert len(request_cases(request_file(tmp_path, REQUEST | answering))) == 2


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ("{", "truncated"),
        ("", "truncated"),
        ('{"context": {"hour": NaN}, "candidates": []}', "malformed"),
        ([], "Expected `object`, got `array`"),
        ({"context": CONTEXT}, "candidates"),
        ({"context": CONTEXT, "candidates": []}, r"length >= 1 - at `\$.candidates`"),
        (REQUEST | {"contxt": {}}, "unknown field `contxt`"),
        (REQUEST | {"candidates": [{"id": 1.5, "features": {}}]}, r"got `float` - at `\$.candidates\[0\].id`"),
        (REQUEST | {"candidates": [{"id": 1, "features": []}]}, r"got `array` - at `\$.candidates\[0\].features`"),
        ('{"context": {"hour": ' + "[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_not_a_request_is_an_error_with_the_json_path(
    tmp_path: Path, request_: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"(?s)request\.json: .*{complaint}"):
        request_cases(request_file(tmp_path, request_))


@pytest.mark.parametrize(
    ("context", "features", "complaint"),
    [
        ({"session_depth": "deep"}, {}, r"'ad-7': context field 'session_depth' must be a number .* a string, 'deep'"),
        ({"device": ["phone"]}, {}, r"context field 'device' must be .* got a list, \['phone'\]"),
        ({}, {"bid": True}, r"candidate field 'bid' must be a number or null, got a boolean, True"),
        ({}, {"ad": {"id": 7}}, r"candidate field 'ad' must be .* got an object, {'id': 7}"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_field(
    explainer: Explainer, context: dict[str, Any], features: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        explainer.explain(Case("ad-7", context, features))


def test_a_folder_that_is_neither_run_nor_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"neither a bundle .*{MANIFEST}.* nor a run .*{METRICS}"):
        open_explainer(tmp_path)


def test_a_run_with_an_mlp_head_has_no_explanation(mlp_run: Path) -> None:
    with pytest.raises(ValueError, match="only a linear head can be folded"):
        open_explainer(mlp_run)


def test_a_bundle_without_an_explanation_graph_is_an_error(bundle_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_folder, tmp_path / "bundle")
    (folder / EXPLAIN).unlink()
    write_manifest(folder, "small", 1, {}, Calibration())
    with pytest.raises(ValueError, match=rf"has no {EXPLAIN}.*an MLP head is not a sum"):
        open_explainer(folder)


def test_weights_that_are_not_finite_are_an_error(explainer: Explainer) -> None:
    broken = Explainer(
        **{**vars(explainer), "graph": lambda feed: [output * np.nan for output in explainer.graph(feed)]}
    )
    with pytest.raises(ValueError, match="the explanation of candidate 'ad-7' is not finite"):
        broken.explain(Case("ad-7", {}, {}))


def test_the_command_prints_numbers_that_add_up_and_names_ignored_features(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request_file(tmp_path, REQUEST | {"context": CONTEXT | {"weather": "rainy"}})
    assert main([str(run_folder), str(path), "--candidate", "ad-7", "--top", "3"]) == 0
    printed, warned = capsys.readouterr()
    explained = open_explainer(run_folder).explain(request_cases(path, "ad-7")[0])
    assert f"ad-7: click probability {explained.ctr:.6f}" in printed
    for number in (explained.bias, explained.logit, *(pair.contribution for pair in explained.pairs()[:3])):
        assert f"{number:+.4f}" in printed
    fields = len(explained.fields)
    assert f"{fields * (fields + 1) // 2 - 3} other pairs" in printed
    assert "context weather" in warned


def test_the_command_writes_all_numbers_and_a_picture_for_each_candidate(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "why"
    assert main([str(bundle_folder), str(request_file(tmp_path)), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["1-ad-7.png", "2-8.png", NUMBERS]
    for picture in out.glob("*.png"):
        height, width, _ = imread(picture).shape
        assert min(height, width) > 4 * DPI
    first, second = json.loads((out / NUMBERS).read_text())
    assert (first["id"], second["id"]) == ("ad-7", 8)
    assert np.sum(first["contribution"]) + first["bias"] == pytest.approx(first["logit"], abs=1e-5)
    assert str(out) in capsys.readouterr().out


def test_older_output_is_replaced(tmp_path: Path) -> None:
    write([invented(), invented()], tmp_path / "why")
    write([invented(id="other")], tmp_path / "why")
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["1-other.png", NUMBERS]
    assert [path.name for path in tmp_path.iterdir()] == ["why"]


def test_sampled_cases_can_share_one_picture(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "cases.png"
    assert main([str(run_folder), "--golden", "2", "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["cases.png"]
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(("fields", "blocks", "heads"), [(2, 1, 1), (10, 1, 5), (40, 2, 2)])
def test_a_picture_has_space_for_every_field_name(tmp_path: Path, fields: int, blocks: int, heads: int) -> None:
    draw([invented(fields, blocks, heads)], tmp_path / "one.png")
    height, width, _ = imread(tmp_path / "one.png").shape
    assert min(height, width) / DPI > 0.2 * fields  # inches: one line of text for each field


def test_a_picture_can_show_any_value_of_a_request(tmp_path: Path) -> None:
    values = ["$5 and $6_{", "two\nlines \x1b[31m", "広告", "x" * 500]
    draw([invented(values=values, id="広$告$")], tmp_path / "one.png")
    assert (tmp_path / "one.png").exists()


def test_the_longest_names_leave_space_for_the_maps(tmp_path: Path) -> None:
    names = [f"{number}{'W' * 62}" for number in range(4)]
    draw([Explanation(**{**vars(invented()), "fields": names, "values": names})], tmp_path / "one.png")
    assert (tmp_path / "one.png").exists()


def test_an_explanation_without_contributions_can_be_plotted(tmp_path: Path) -> None:
    draw([invented(contribution=np.zeros((3, 4, 4)))], tmp_path / "one.png")
    assert (tmp_path / "one.png").exists()


def test_ids_that_are_not_valid_file_names_are_replaced(tmp_path: Path) -> None:
    write([invented(id="../../etc/passwd"), invented(id="..")], tmp_path / "why")
    names = sorted(path.name for path in (tmp_path / "why").iterdir())
    assert names == ["1-.._.._etc_passwd.png", "2-...png", NUMBERS]


@pytest.mark.parametrize("out", ["why", "why.png"])
def test_a_full_disk_leaves_no_partial_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    def full(figure: Figure, path: Path, **options: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        write([invented()], tmp_path / out)
    assert list(tmp_path.iterdir()) == []


def test_too_many_explanations_for_one_picture_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{MAX_ROWS + 1} candidates, but a picture shows at most {MAX_ROWS}"):
        write([invented()] * (MAX_ROWS + 1), tmp_path / "why.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_kind_is_not_replaced(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert main([str(run_folder), "--golden", "1", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    printed, said = capsys.readouterr()
    assert printed == ""
    assert NUMBERS in said


@pytest.mark.parametrize("arguments", [[], ["request.json", "--golden", "1"], ["--golden", "1", "--top", "-1"]])
def test_missing_or_contradictory_arguments_are_an_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", *arguments])
