"""ctr-verify: check a bundle or a running server with the golden requests, or replay a request log with a bundle."""

import argparse
import http.client
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from contract.bundle import GOLDEN, Bundle, BundleError, open_bundle
from contract.cpu_quota import limit_threads
from contract.encode import Encoder
from contract.golden import TOLERATED, Difference, GoldenRequest, largest_difference, max_difference, read_golden
from contract.pseudonyms import VARIABLE, Pseudonymizer, check_pseudonym_key, open_pseudonymizer
from contract.reader import BadFeature
from service.runtime.engine import golden_answers, open_engine
from service.runtime.onnx_session import EngineMissing

Answer = Callable[[GoldenRequest], Sequence[float]]
MAX_LISTED_LINES = 10


class CannotVerify(RuntimeError):
    """The server does not answer, or it serves a different model."""


class AnsweredScore(msgspec.Struct):
    ctr: float | None


class Answered(msgspec.Struct):
    """What is compared of a response. Servers of every version send it."""

    version: str
    scores: list[AnsweredScore]


class RefusedAsStrict(Exception):
    """The server refuses a request because a value is missing, as it must with CTR_STRICT."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if the answers match, 1 if a probability differs, or 2 after an error message."""
    limit_threads()
    parser = argparse.ArgumentParser("ctr-verify", description="Check a bundle, or a server that serves it.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--url", help="check a running server, for example http://127.0.0.1:8000")
    mode.add_argument(
        "--log",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="replay a request log and show how the answers differ",
    )
    mode.add_argument(
        "--without-vocabulary",
        action="store_true",
        help="check files and graphs only, for a bundle whose vocabulary is only in Redis",
    )
    parser.add_argument(
        "--pseudonym-key",
        type=Path,
        metavar="FILE",
        help="with --log, the key for logs that hold raw values of fields with pseudonyms; default: the file that "
        f"{VARIABLE} names. Nothing else needs a key, because golden requests hold pseudonyms",
    )
    arguments = parser.parse_args(argv)
    if arguments.pseudonym_key is not None and not arguments.log:
        parser.error("--pseudonym-key has no effect without --log: remove it")
    try:
        if arguments.without_vocabulary:
            return verify_files(arguments.bundle)
        bundle = open_bundle(arguments.bundle)
        if arguments.log:
            return replay_log(arguments.log, bundle, open_pseudonymizer(arguments.pseudonym_key))
        return verify_golden(bundle, arguments.url)
    except (BundleError, EngineMissing, CannotVerify, OSError, ValueError, http.client.HTTPException) as error:
        print(f"ctr-verify: {error}", file=sys.stderr)
        return 2


def verify_golden(bundle: Bundle, url: str | None) -> int:
    """Check that the golden requests get the same answers as from the exporter. Return the exit code.

    Args:
        bundle: The bundle.
        url: A server that serves the bundle. If it is None, the requests are scored on this machine, without a server.
    """
    golden = read_golden(bundle.folder / GOLDEN)
    answers: AbstractContextManager[Answer]
    answers = ask_server(url, bundle) if url else nullcontext(golden_answers(open_engine(bundle, threads=1), bundle))
    with answers as answer:
        difference, refused = compare(answer, golden)
    compared = [request for line, request in enumerate(golden, 1) if line not in refused]
    print(f"{bundle.manifest.name} {bundle.manifest.version}")
    print(
        f"{len(compared)} requests, {sum(len(request.candidates) for request in compared)} candidates, "
        f"largest difference {difference}"
    )
    if refused:
        print(f"not compared because the server is strict (CTR_STRICT): {format_lines(refused)} of {GOLDEN}")
    if difference.is_tolerated:
        return 0
    print(
        f"ctr-verify: the answers differ from the exporter's by {difference}, more than {TOLERATED}: "
        "export the run again",
        file=sys.stderr,
    )
    return 1


def golden_difference(bundle: Bundle) -> Difference:
    """Return by how much the answers on this machine differ from the exporter's at most.

    Raises:
        ValueError, EngineMissing: The golden requests or the graphs cannot be read, or onnxruntime is missing.
    """
    answer = golden_answers(open_engine(bundle, threads=1), bundle)
    return compare(answer, read_golden(bundle.folder / GOLDEN))[0]


def compare(answer: Answer, golden: Sequence[GoldenRequest]) -> tuple[Difference, list[int]]:
    """Return the largest difference, and the line numbers of the golden requests that a strict server refuses."""
    differences, refused = [], []
    for line, request in enumerate(golden, 1):
        try:
            differences.append(largest_difference(request.ctr, answer(request)))
        except RefusedAsStrict:
            refused.append(line)
    if not differences:
        raise CannotVerify(
            f"the server is strict (CTR_STRICT) and refuses {format_lines(refused)} of {GOLDEN}, which is all of them: "
            "start the server without CTR_STRICT to verify it"
        )
    return max_difference(differences), refused


def format_lines(numbers: Sequence[int]) -> str:
    """Return line numbers as text, at most MAX_LISTED_LINES of them."""
    more = f" and {len(numbers) - MAX_LISTED_LINES} more" if len(numbers) > MAX_LISTED_LINES else ""
    return f"lines {', '.join(map(str, numbers[:MAX_LISTED_LINES]))}{more}"


@contextmanager
def ask_server(url: str, bundle: Bundle) -> Iterator[Answer]:
    """Connect to a server, and yield a function that scores a golden request on that server.

    The function raises RefusedAsStrict if the server refuses the request because of CTR_STRICT.

    Raises:
        CannotVerify: The URL is invalid, the server returns an error, or it serves a different version.
    """
    # pydantic and Starlette take 0.2 s to import, and --help does not need them.
    from service.api.problem_details import ProblemDetails
    from service.api.schemas import SCORE_PATH
    from service.settings import MAX_TIMEOUT_MS

    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise CannotVerify(f"{url!r} is not the URL of a server: give one such as http://127.0.0.1:8000")
    connect = http.client.HTTPSConnection if split.scheme == "https" else http.client.HTTPConnection
    path = f"{split.path.rstrip('/')}{SCORE_PATH}"

    def answer(golden: GoldenRequest) -> list[float]:
        body = {"context": golden.context, "candidates": golden.candidates, "timeout_ms": MAX_TIMEOUT_MS}
        connection.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        raw = response.read()
        if response.status == http.client.UNPROCESSABLE_ENTITY:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                refused_path = msgspec.json.decode(raw, type=ProblemDetails).path
                if refused_path is not None and refused_path == strict_refusal_path(golden, bundle):
                    raise RefusedAsStrict
        if response.status != http.client.OK:
            raise CannotVerify(f"the server answered {response.status}: {raw.decode(errors='replace')[:500]}")
        try:
            scored = msgspec.json.decode(raw, type=Answered)
        except msgspec.DecodeError as error:
            raise CannotVerify(f"the answer is not from a scoring server ({error}): check the URL") from error
        if scored.version != bundle.manifest.version:
            raise CannotVerify(
                f"the server has version {scored.version}, but the bundle is {bundle.manifest.version}: "
                "serve this bundle"
            )
        # NaN for a candidate without a ctr, because NaN differs from every number.
        return [float("nan") if score.ctr is None else score.ctr for score in scored.scores]

    with closing(connect(split.hostname, split.port, timeout=2 * MAX_TIMEOUT_MS / 1e3)) as connection:
        yield answer


def strict_refusal_path(golden: GoldenRequest, bundle: Bundle) -> str | None:
    """Return the JSON path of the value that makes a strict server refuse a golden request, or None."""
    features = [candidate.features for candidate in golden.candidates]
    try:
        Encoder(bundle.schema, strict=True).tokens(golden.context, features)
    except BadFeature as error:
        return error.path
    return None


def verify_files(folder: Path) -> int:
    """Check a bundle's files and graphs, but not its answers. Return the exit code."""
    bundle = open_bundle(folder, vocabulary=False)
    open_engine(bundle, threads=1)
    print(f"{bundle.manifest.name} {bundle.manifest.version}: files and graphs are valid")
    return 0


def replay_log(paths: Sequence[Path], bundle: Bundle, pseudonyms: Pseudonymizer | None = None) -> int:
    """Score the requests of a log with a bundle, and print how its answers differ from the logged ones.

    Args:
        paths: Log files, and folders of log files.
        bundle: The bundle.
        pseudonyms: The key for logs with raw values of fields with pseudonyms, such as those of an earlier model.

    Returns:
        The exit code: 1 if the bundle's own version gave different answers in the log, otherwise 0.
    """
    # These modules import Starlette and prometheus_client, which --help does not need.
    from service.request_log.replay import replay, report, report_skipped

    check_pseudonym_key(bundle.schema, pseudonyms)
    versions, skipped = replay(paths, bundle, open_engine(bundle, threads=1), pseudonyms)
    print(f"{bundle.manifest.name} {bundle.manifest.version}")
    for replayed in versions:
        print("\n".join(report(replayed)))
    if pseudonyms is None and bundle.schema.pseudonym_key and any(replayed.not_compared for replayed in versions):
        print("requests with raw values of fields with pseudonyms are compared only with --pseudonym-key FILE")
    for text in report_skipped(skipped):
        print(text)
    if any(replayed.unexplained for replayed in versions):
        print(
            f"ctr-verify: the same version now gives answers that differ by more than {TOLERATED} from the log",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
