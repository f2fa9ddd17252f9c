"""ctr-verify: the golden requests through a bundle or a running server; or a request log through another bundle."""

import argparse
import http.client
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from contract.bundle import GOLDEN, Bundle, BundleError, open_bundle
from contract.encode import Encoder
from contract.golden import TOLERANCE, GoldenRequest, largest_difference, read_golden
from contract.reader import BadFeature
from service.api.problem_details import ProblemDetails
from service.api.schemas import ScoreResponse
from service.request_log.replay import replay, report
from service.runtime.engine import golden_answers, open_engine
from service.runtime.onnx_session import EngineMissing
from service.settings import MAX_TIMEOUT_MS

Answer = Callable[[GoldenRequest], Sequence[float]]
LINES_NAMED = 10


class CannotVerify(RuntimeError):
    """The server did not answer, or answers with another model."""


class RefusedAsStrict(Exception):
    """The server refuses a request because a value is missing, as CTR_STRICT has it do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: equal. 1: a probability differs. 2: it could not be asked, and a sentence says why."""
    parser = argparse.ArgumentParser("ctr-verify", description="Checks a bundle, or a server that serves it.")
    parser.add_argument("bundle", type=Path)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--url", help="a running server, for example http://127.0.0.1:8000")
    way.add_argument(
        "--log", type=Path, nargs="+", metavar="PATH", help="a request log: show what this bundle answers instead"
    )
    way.add_argument(
        "--without-vocabulary",
        action="store_true",
        help="files and graphs alone: for a bundle that leaves its vocabulary to Redis",
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.without_vocabulary:
            return _open_alone(arguments.bundle)
        if arguments.log:
            return _replay_log(arguments.log, open_bundle(arguments.bundle))
        bundle = open_bundle(arguments.bundle)
        golden = read_golden(bundle.folder / GOLDEN)
        with _server(arguments.url, bundle) if arguments.url else _engine(bundle) as answer:
            difference, refused = _compare(answer, golden)
    except (BundleError, EngineMissing, CannotVerify, OSError, ValueError, http.client.HTTPException) as error:
        print(f"ctr-verify: {error}", file=sys.stderr)
        return 2
    compared = [one for line, one in enumerate(golden, 1) if line not in refused]
    print(f"{bundle.manifest.name} {bundle.manifest.version}")
    print(
        f"{len(compared)} requests, {sum(len(one.candidates) for one in compared)} candidates, "
        f"largest difference {difference:.3g}"
    )
    if refused:
        print(f"not compared, for the server is strict (CTR_STRICT): {_lines(refused)} of {GOLDEN}")
    if difference <= TOLERANCE:
        return 0
    print(f"ctr-verify: {difference:.3g} is more than {TOLERANCE:g}: export the run again", file=sys.stderr)
    return 1


def _open_alone(folder: Path) -> int:
    bundle = open_bundle(folder, vocabulary=False)
    open_engine(bundle, threads=1)
    print(f"{bundle.manifest.name} {bundle.manifest.version}: its files and graphs are whole")
    return 0


def _replay_log(paths: Sequence[Path], bundle: Bundle) -> int:
    versions, garbled = replay(paths, bundle, open_engine(bundle, threads=1))
    print(f"{bundle.manifest.name} {bundle.manifest.version}")
    for one in versions:
        print("\n".join(report(one)))
    if garbled:
        print(f"not read: {garbled} lines that are cut or none of a request log")
    if any(one.is_unexplained(bundle) for one in versions):
        print(f"ctr-verify: the same version answers otherwise by more than {TOLERANCE:g} now", file=sys.stderr)
        return 1
    return 0


def _compare(answer: Answer, golden: Sequence[GoldenRequest]) -> tuple[float, list[int]]:
    """The largest difference, and the lines that a strict server refuses."""
    differences, refused = [], []
    for line, one in enumerate(golden, 1):
        try:
            differences.append(largest_difference(one.ctr, answer(one)))
        except RefusedAsStrict:
            refused.append(line)
    if not differences:
        raise CannotVerify(
            f"the server is strict (CTR_STRICT) and refuses {_lines(refused)} of {GOLDEN}, which is all: "
            "start it without CTR_STRICT to verify it"
        )
    return max(differences), refused


def _lines(refused: Sequence[int]) -> str:
    more = f" and {len(refused) - LINES_NAMED} more" if len(refused) > LINES_NAMED else ""
    return f"lines {', '.join(map(str, refused[:LINES_NAMED]))}{more}"


def _engine(bundle: Bundle) -> AbstractContextManager[Answer]:
    return nullcontext(golden_answers(open_engine(bundle, threads=1), bundle))


@contextmanager
def _server(url: str, bundle: Bundle) -> Iterator[Answer]:
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise CannotVerify(f"{url!r} is no URL of a server: give one like http://127.0.0.1:8000")
    connect = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
    with closing(connect(split.hostname, split.port, timeout=2 * MAX_TIMEOUT_MS / 1e3)) as connection:
        path = f"{split.path.rstrip('/')}/v1/score"
        yield lambda one: _post(connection, path, one, bundle)


def _post(connection: http.client.HTTPConnection, path: str, one: GoldenRequest, bundle: Bundle) -> list[float]:
    body = {"context": one.context, "candidates": one.candidates, "timeout_ms": MAX_TIMEOUT_MS}
    connection.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    raw = response.read()
    if response.status == http.client.UNPROCESSABLE_ENTITY and _is_refused_as_strict(raw, one, bundle):
        raise RefusedAsStrict
    if response.status != http.client.OK:
        raise CannotVerify(f"the server answered {response.status}: {raw.decode(errors='replace')[:500]}")
    try:
        answer = msgspec.json.decode(raw, type=ScoreResponse)
    except msgspec.DecodeError as error:
        raise CannotVerify(f"that answer is no scoring service's ({error}): is the URL right?") from error
    if answer.version != bundle.manifest.version:
        raise CannotVerify(
            f"the server has version {answer.version}, the bundle is {bundle.manifest.version}: serve this bundle"
        )
    # A candidate without a ctr differs from every number.
    return [float("nan") if score.ctr is None else score.ctr for score in answer.scores]


def _is_refused_as_strict(raw: bytes, one: GoldenRequest, bundle: Bundle) -> bool:
    """Whether the server complains of what a strict encoder complains of here."""
    try:
        Encoder(bundle.schema, strict=True).tokens(one.context, [candidate.features for candidate in one.candidates])
    except BadFeature as error:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(raw, type=ProblemDetails).path == error.path
    return False


if __name__ == "__main__":
    sys.exit(main())
