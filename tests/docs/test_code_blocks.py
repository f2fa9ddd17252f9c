"""Every code block works: commands and flags exist, requests are answered, and TOML and JSON are valid."""

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import msgspec
import pytest
import pytest_asyncio

from model.experiment_config import to_experiment
from model.experiments.sweep_config import read_sweep
from service.api.problem_details import ProblemDetails
from service.api.schemas import ScoreRequest, ScoreResponse
from service.app import create_app
from service.collect.app import create_app as create_collect_app
from service.collect.openapi import EventsResponse
from service.collect.settings import CollectSettings
from service.errors import BadRequest
from service.settings import COLLECT_PREFIX, Settings
from tests.support.documentation import COLLECT, PAGES, SERVER, CodeBlock, code_blocks, commands, send, without_code
from tests.support.paths import DEMO, EXPERIMENTS, ROOT

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(" ".join(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)).split())
VARIABLES = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
OTHER_PROGRAMS = {
    "chmod",
    "curl",
    "docker",
    "kubectl",
    "openssl",
    "promtool",
    ".",
    "locust",
    "redis-cli",
    "cd",
    "aws",
    "mv",
}
ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)
INLINE = re.compile(r"`((?:make|ctr-\w+|python -m|locust) [^`]+)`")


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    for block in code_blocks("sh"):
        for words in commands(block.text):
            yield str(block.page.relative_to(ROOT)), words
    for page in PAGES:
        for text in INLINE.findall(without_code(page)):
            yield str(page.relative_to(ROOT)), shlex.split(text)


COMMANDS = list(documented_commands())
ALL_CURLS = [(page, words) for page, words in COMMANDS if words[0] == "curl"]
CURLS = [(page, words) for page, words in ALL_CURLS if words[2].startswith(SERVER)]
EVENT_CURLS = [(page, words) for page, words in ALL_CURLS if words[2].startswith(COLLECT)]


class Parsed(Exception):
    """The command's parser accepted its arguments."""


def parse(main: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command's `main` up to its argument parser, which must accept the arguments in `words`."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", ["cpu" if word == "cuda" else word for word in words])  # there may be no GPU
    with pytest.raises(Parsed):
        main()


def test_every_block_has_a_language_that_is_tested() -> None:
    assert {block.language for block in code_blocks()} <= {"sh", "toml", "json", "text"}
    assert len(COMMANDS) > 60
    assert len(CURLS) >= 4
    assert len(EVENT_CURLS) >= 1
    assert len(CURLS) + len(EVENT_CURLS) == len(ALL_CURLS)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(w)[:50]}" for page, w in COMMANDS])
def test_a_documented_command_exists(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    while (assignment := ASSIGNMENT.fullmatch(words[0])) is not None:
        check_variable(assignment[1])
        words = words[1:]
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] in SCRIPTS:
        module, _, function = SCRIPTS[words[0]].partition(":")
        main = getattr(importlib.import_module(module), function)
        if words[1:]:
            parse(main, words, monkeypatch)
    elif words[:2] == ["python", "-m"]:
        check_module(words[2:], monkeypatch)
    else:
        assert words[0] in OTHER_PROGRAMS, f"{words[0]}: add a check for this program"
        for argument in words[1:]:
            if argument.startswith(("deploy/", "loadtest/")):
                assert (ROOT / argument).exists(), argument


def check_make(arguments: list[str]) -> None:
    for argument in arguments:
        assigned = ASSIGNMENT.fullmatch(argument)
        if assigned is None:
            assert argument in TARGETS, f"the Makefile has no target {argument}"
        else:
            assert assigned[1] in VARIABLES, f"the Makefile has no variable {assigned[1]}"


def check_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a module exists and accepts its arguments. words: the words after `python -m`."""
    package = importlib.util.find_spec(words[0])
    assert package is not None, f"there is no module {words[0]}"
    if words[1:]:
        name = f"{words[0]}.__main__" if package.submodule_search_locations else words[0]
        parse(importlib.import_module(name).main, words, monkeypatch)


def check_variable(name: str) -> None:
    """Check that a variable set before a command is a setting or a variable of compose.yaml."""
    known = {f"CTR_{field.upper()}" for field in Settings.model_fields}
    known |= {f"{COLLECT_PREFIX}{field.upper()}" for field in CollectSettings.model_fields}
    known |= set(re.findall(r"\$\{(\w+):-", (ROOT / "compose.yaml").read_text()))
    assert name in known, f"{name} is neither a setting nor a variable of compose.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """The application with the demo bundle, after its self-test."""
    app = create_app(Settings(bundle=DEMO))
    async with app.router.lifespan_context(app):
        await app.state.serving.model.scorer.readiness.tested.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=SERVER) as client:
            yield client


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("page", "words"), CURLS, ids=[f"{page}: {w[2]}" for page, w in CURLS])
async def test_a_curl_command_is_answered(page: str, words: list[str], client: httpx.AsyncClient) -> None:
    response = await send(words, client)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(("page", "words"), EVENT_CURLS, ids=[f"{page}: {w[2]}" for page, w in EVENT_CURLS])
async def test_the_events_of_a_curl_command_are_stored(page: str, words: list[str], tmp_path: Path) -> None:
    app = create_collect_app(CollectSettings(folder=tmp_path))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=COLLECT) as client:
        response = await send(words, client, COLLECT, {})
    assert response.status_code == 202, response.text
    assert response.json()["invalid"] == []


SMALLEST = next(block for block in code_blocks("toml") if block.page.name == "README.md")


@pytest.mark.parametrize("block", code_blocks("toml"), ids=str)
def test_a_toml_block_is_an_experiment_a_sweep_or_a_part_of_one(block: CodeBlock, tmp_path: Path) -> None:
    document = msgspec.toml.decode(block.text)
    if "base" in document:
        path = tmp_path / "sweep.toml"
        path.write_text(block.text)
        shutil.copy(EXPERIMENTS / "frappe" / document["base"], tmp_path)
        _, bases = read_sweep(path)
        assert len(bases[0].points) > 1
    else:
        # A block with a `name` is a whole experiment. So is a block with `files`, which may conflict with the one in
        # README.md. All other blocks are parts that fit into the experiment in README.md.
        is_whole = "name" in document or "files" in document.get("data", {})
        whole = document if is_whole else merged(msgspec.toml.decode(SMALLEST.text), document)
        assert to_experiment(whole).data.reader == "table"


def merged(base: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `part`, merging nested tables."""
    result = dict(base)
    for key, value in part.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


@pytest.mark.parametrize("block", code_blocks("json"), ids=str)
def test_a_json_block_matches_its_type(block: CodeBlock) -> None:
    document = json.loads(block.text)
    kinds: list[tuple[str, type[msgspec.Struct]]] = [
        ("candidates", ScoreRequest),
        ("scores", ScoreResponse),
        ("stored", EventsResponse),
        ("status", ProblemDetails),
    ]
    (kind,) = [kind for member, kind in kinds if member in document]
    assert set(document) <= set(kind.__struct_fields__)
    shown = msgspec.convert(document, kind)
    if isinstance(shown, ProblemDetails):
        assert shown.status == BadRequest.status
        assert shown.type == f"urn:problem-type:ctr:{BadRequest.outcome.replace('_', '-')}"
