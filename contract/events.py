"""What clients report about an answer: that a candidate was shown, and that it was clicked or led to a conversion."""

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_ID_CHARS = 128
MAX_CLOCK_SKEW_S = 300  # if times differ by more than this, the client's clock counts as wrong
MAX_POSITION = 1_000_000

EventType = Literal["impression", "click", "conversion"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
EventId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="Chosen by the client. An event that is sent again must have the same id, so that it counts once.",
    ),
]


class Event(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One event, as a client sends it."""

    event_id: EventId
    type: EventType
    score_id: Annotated[str, Meta(description="The `score_id` of the response that the candidate was in.")]
    candidate: Annotated[
        int, Meta(ge=0, le=MAX_POSITION, description="The candidate's position in the request: `candidate`.")
    ]
    time: Annotated[str, Meta(description="When it happened, by the client's clock (ISO 8601 with a time zone).")]
    position: (
        Annotated[int, Meta(ge=0, le=MAX_POSITION, description="Where the candidate was shown; 0 is the best place.")]
        | UnsetType
    ) = UNSET
    propensity: (
        Annotated[float, Meta(gt=0, le=1, description="The probability of this position, if it was chosen at random.")]
        | UnsetType
    ) = UNSET
    value: Annotated[float, Meta(description="For example the revenue of a conversion.")] | UnsetType = UNSET


class StoredEvent(Event, omit_defaults=True, kw_only=True):
    """An event in the files of ctr-collect.

    Attributes:
        received: When ctr-collect received the event, by its own clock in UTC (ISO 8601, milliseconds).
        client: The name of the client's API key.
    """

    received: str
    client: str | UnsetType = UNSET
