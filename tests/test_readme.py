"""The README keeps its word: its example is answered as it says, its numbers stand in a report."""

import json
import re

import httpx
import msgspec
import pytest

from model.experiment_config import to_experiment
from model.experiments.leaderboard import markdown, read_leaderboard
from model.experiments.significance import mean_and_std, read_report
from model.zoo import MODELS
from service.app import create_app
from service.settings import Settings
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()


def block(language: str, number: int = 0) -> str:
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return blocks[number]


async def test_its_example_is_answered_as_it_says() -> None:
    app = create_app(Settings(bundle=ROOT / "deploy" / "demo"))
    async with app.router.lifespan_context(app):
        await app.state.serving.model.scorer.readiness.tested.wait()
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            body = re.search(r"-d '(.*?)'", block("sh"), re.DOTALL)
            assert body is not None
            headers = {"Content-Type": "application/json"}
            patient = body.group(1).replace('"timeout_ms": 50', '"timeout_ms": 5000')  # on a busy machine
            response = await client.post("/v1/score", content=patient, headers=headers)
    answer, promised = response.json(), json.loads(block("json"))
    assert response.status_code == 200, answer
    assert [s["id"] for s in answer["scores"]] == [s["id"] for s in promised["scores"]]
    for got, said in zip(answer["scores"], promised["scores"], strict=True):
        assert got["ctr"] == pytest.approx(said["ctr"], abs=1e-5)
    assert answer["model"] == promised["model"]
    assert answer["version"] == promised["version"]
    assert answer.keys() == promised.keys()


def test_its_experiment_is_one() -> None:
    experiment = to_experiment(msgspec.toml.decode(block("toml")))
    assert experiment.data.reader == "table"


def test_the_settings_that_it_names_exist() -> None:
    named = set(re.findall(r"`CTR_(\w+)`", README))
    assert len(named) > 8
    assert named <= {name.upper() for name in Settings.model_fields}


def test_its_measured_rows_stand_in_the_report_that_it_names() -> None:
    measured = README.split("## Measured")[1].split("\n## ")[0]
    sections = re.split(r"^### ", measured, flags=re.MULTILINE)[1:]
    assert len(sections) >= 4
    for section in sections:
        link = re.search(r"\]\(([\w./-]+\.md)\)", section)
        assert link is not None, section
        report = (ROOT / link.group(1)).read_text()
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert rows, section
        for row in rows:
            assert row in report, f"{row} is not in {link.group(1)}"


def test_the_files_it_links_to_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("log", "columns"), [("frappe", (1, 2, 3)), ("movielens_tag", (5, 6, 7))])
def test_the_page_of_ablations_repeats_its_sweeps(log: str, columns: tuple[int, ...]) -> None:
    """AUC, logloss and parameters of each variant."""
    sweep = (ROOT / "experiments" / log / "results" / "sweep-ablations.md").read_text()
    page = [
        line for line in (ROOT / "experiments" / "ablations.md").read_text().splitlines() if line.startswith("| STEC")
    ]
    assert len(page) == 5
    for line in page:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        point = "base" if cells[0] == "STEC" else f"ablation {cells[0]}"
        (row,) = [row for row in sweep.splitlines() if row.startswith(f"| {point} | 5 |")]
        assert all(f" {cells[column]} |" in row for column in columns), (line, row)


@pytest.mark.parametrize("log", ["frappe", "movielens_tag"])
def test_a_table_of_every_model_is_that_of_the_reports_beside_it(log: str) -> None:
    folder = ROOT / "experiments" / log
    made = [line for line in markdown(folder, read_leaderboard(folder), []).splitlines() if line.startswith("|")]
    there = [line for line in (folder / "results" / "models.md").read_text().splitlines() if line.startswith("|")]
    assert there == made, f"ctr-compare --all experiments/{log} makes it anew"


def test_the_page_of_baselines_has_a_row_for_every_model_with_what_its_report_says() -> None:
    page = (ROOT / "model" / "baselines" / "README.md").read_text()
    ours = dict(re.findall(r"^\| [^|]+ \| \[(\w+)\.py\].*\| ([^|]+) \|$", page, re.MULTILINE))
    assert {*ours, "stec"} == {*MODELS}
    for name, said in ours.items():
        report = ROOT / "experiments" / "frappe" / "results" / f"{name}.json"
        aucs = [auc * 100 for auc in read_report(report).seeds.aucs] if report.exists() else []
        assert said == (f"{mean_and_std(aucs, 2)} ({len(aucs)})" if aucs else "not trained yet"), name
