"""Is an answer the right one? By the version that it says it is of."""

import msgspec

from contract.golden import TOLERANCE, largest_difference
from loadtest.openloop.message import Prepared


class _Score(msgspec.Struct):
    id: str | int
    ctr: float


class _Answer(msgspec.Struct):
    version: str
    scores: list[_Score]


_ANSWER = msgspec.json.Decoder(_Answer)


def what_is_wrong(request: Prepared, body: bytes) -> str | None:
    """A sentence, or None."""
    try:
        answer = _ANSWER.decode(body)
    except msgspec.DecodeError as error:
        return f"a 200 that is no answer: {error}"
    expected = request.expected.get(answer.version)
    if expected is None:
        return f"of version {answer.version}, which nobody activated"
    if [score.id for score in answer.scores] != request.ids:
        return "other ids, or in another order"
    difference = largest_difference(expected, [score.ctr for score in answer.scores])
    return None if difference <= TOLERANCE else f"off by {difference:.3g} from what {answer.version} answers"
