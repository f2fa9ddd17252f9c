"""Check a server's answer against the probabilities expected from the version named in the answer."""

import urllib.request

import msgspec

from contract.golden import largest_difference
from loadtest.openloop.message import Prepared

REQUEST_TIMEOUT_S = 30.0


class _Score(msgspec.Struct):
    id: str | int
    ctr: float


class _Answer(msgspec.Struct):
    version: str
    scores: list[_Score]


class _Scores(msgspec.Struct):
    scores: list[_Score]


_ANSWER = msgspec.json.Decoder(_Answer)
_SCORES = msgspec.json.Decoder(_Scores)


def what_is_wrong(request: Prepared, body: bytes) -> str | None:
    """Return what is wrong with the body of a 200, or None.

    Args:
        request: The request, with the expected probabilities for each version that may be served.
        body: The answer as JSON.
    """
    try:
        answer = _ANSWER.decode(body)
    except msgspec.DecodeError as error:
        return f"the body of the 200 contains no valid scores: {error}"
    expected = request.expected.get(answer.version)
    if expected is None:
        return f"the answer is from version {answer.version}, which was not activated"
    if [score.id for score in answer.scores] != request.ids:
        return "the ids in the answer differ from those in the request, or are in a different order"
    difference = largest_difference(expected, [score.ctr for score in answer.scores])
    return None if difference.is_tolerated else f"probabilities of {answer.version} are off by {difference}"


def fetch_scores(url: str, request: Prepared) -> list[float]:
    """Send a request to a server and return the probabilities from its answer, in the request's order.

    This also works with other servers, whose answers contain no version.

    Raises:
        OSError: The server did not answer with 200.
        msgspec.DecodeError: The answer contains no scores.
    """
    headers = {"Content-Type": "application/json"}
    post = urllib.request.Request(f"{url}/v1/score", request.body, headers)  # noqa: S310  # a server under test
    with urllib.request.urlopen(post, timeout=REQUEST_TIMEOUT_S) as answer:  # noqa: S310
        return [score.ctr for score in _SCORES.decode(answer.read()).scores]
