"""The README's quick start works as shown, and the settings that it names exist."""

import json
import re

import httpx

from service.app import create_app
from service.settings import Settings
from tests.support.documentation import README, SERVER, blocks_of, commands, send
from tests.support.paths import DEMO

TEXT = README.read_text()


async def test_the_example_is_answered_as_shown_in_the_readme() -> None:
    blocks = list(blocks_of(README))
    curl = next(words for b in blocks if b.language == "sh" for words in commands(b.text) if words[0] == "curl")
    promised = json.loads(next(block.text for block in blocks if block.language == "json"))
    app = create_app(Settings(bundle=DEMO))
    async with app.router.lifespan_context(app):
        await app.state.serving.model.scorer.readiness.tested.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=SERVER) as client:
            response = await send(curl, client)
    answer = response.json()
    assert response.status_code == 200, answer
    assert [score["id"] for score in answer["scores"]] == [score["id"] for score in promised["scores"]]
    for score, expected in zip(answer["scores"], promised["scores"], strict=True):
        assert round(score["ctr"], 4) == expected["ctr"]
    assert answer["model"] == promised["model"]
    assert promised["version"].endswith("...")  # shortened
    assert answer["version"].startswith(promised["version"].removesuffix("..."))
    assert answer.keys() == promised.keys()


def test_the_settings_that_the_readme_names_exist() -> None:
    named = set(re.findall(r"`CTR_(\w+)`", TEXT))
    assert len(named) >= 5
    assert named <= {name.upper() for name in Settings.model_fields}


def test_the_defaults_that_the_readme_states_match_the_settings() -> None:
    rows = [line.split(" | ") for line in TEXT.splitlines() if line.startswith("| `CTR_")]
    stated = 0
    for names, defaults, *_ in rows:
        for field, default in zip(re.findall(r"`CTR_(\w+)`", names), defaults.split(", "), strict=False):
            if re.fullmatch(r"[\d.]+|true|false", default.strip()):
                stated += 1
                assert str(Settings.model_fields[field.lower()].default).lower() == default.strip()
    assert stated >= 1
