"""Confine the strings and literals that JSON does not allow to the values that contain them.

msgspec refuses a whole body for one NaN or for one half of a surrogate pair. A string that is not UTF-8 is different:
msgspec refuses only the value that contains it. So each such string or literal is replaced by a string that is not
UTF-8 and that states the fault. Brackets, commas, colons and quotation marks are not touched. If they are wrong, it is
unknown where a value ends, and the body stays invalid.

The text of a body has a character from \\udc80 to \\udcff for each byte that is not UTF-8 (errors="surrogateescape").
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from service.errors import NotJson

MAX_FAULTS = 10_000

BLANK = r" \t\n\r"
HEX = "[0-9a-fA-F]"
SURROGATE_PAIR = rf"[dD][89abAB]{HEX}{{2}}\\u[dD][c-fC-F]{HEX}{{2}}"
UNICODE_ESCAPE = rf"\\u(?:[0-9abcefABCEF]{HEX}{{3}}|[dD][0-7]{HEX}{{2}}|{SURROGATE_PAIR})"
SHORT_ESCAPES = '"/bfnrt'
TEXT = rf'[^"\\\x00-\x1f\udc80-\udcff]++|{UNICODE_ESCAPE}'
LITERAL = rf'(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][-+]?[0-9]++)?+|true|false|null)(?![^{BLANK}"\[\]{{}},:])'

# These match a text without short escapes: see find_faults().
VALID = re.compile(rf'(?:[{BLANK}\[\]{{}},:]++|"(?:{TEXT})*+"|{LITERAL})*+')
FAULT = re.compile(rf'"[^"]*+"|[^{BLANK}"\[\]{{}},:]++')
AFTER_NAME = re.compile(rf"[{BLANK}]*+:")
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f]")
NO_ESCAPE = re.compile(rf"\\(?!u{HEX}{{4}})")
BYTE_ESCAPES = {code: rf"\x{code & 0xFF:02x}" for code in range(0xDC80, 0xDD00)}

MARK = "\udcff\udcff"  # No text in a single-byte encoding begins like this. Followed by the kind of the fault.
NOT_UNICODE, CONTROL, NOT_AN_ESCAPE, NOT_A_LITERAL = "ucel"
MESSAGES = {
    NOT_UNICODE: "The text is not valid Unicode: it contains bytes that are not UTF-8, or half of a surrogate pair, "
    "such as \\ud83d without its other half. Cut strings only between characters, and encode the body as UTF-8.",
    CONTROL: "The string contains a control character, which JSON does not allow. Escape it: send a line break as "
    "\\n and a tab as \\t.",
    NOT_AN_ESCAPE: "The string contains a backslash that does not begin a JSON escape. Send a backslash as \\\\.",
    NOT_A_LITERAL: "This is not JSON, which has no NaN, no Infinity, no leading zeros and no text without double "
    "quotation marks. Send null for a missing number.",
}


class Fault(NamedTuple):
    """An invalid string or literal: `text[start:end]`. A string may be a name."""

    start: int
    end: int
    kind: str
    is_name: bool


def confine_faults(body: bytes) -> bytes:
    """Return a body in which each invalid string or literal is a string that is not UTF-8.

    A name becomes its text in the body, such as "caf\\xe9": it is the name of a field that no model reads.

    Raises:
        NotJson: There are more than MAX_FAULTS. This limits the time that an invalid body takes.
    """
    text = body.decode("utf-8", "surrogateescape")
    parts: list[str] = []
    start = 0
    for fault in find_faults(text):
        if len(parts) == 2 * MAX_FAULTS:
            raise NotJson(f"More than {MAX_FAULTS:,} strings and literals are not JSON. Send valid JSON.")
        found = text[fault.start : fault.end]
        parts += (text[start : fault.start], escaped_name(found) if fault.is_name else f'"{MARK}{fault.kind}"')
        start = fault.end
    return "".join((*parts, text[start:])).encode("utf-8", "surrogateescape")


def is_confined(value: bytes) -> bool:
    """Return whether this JSON value is a string that confine_faults() wrote."""
    return value.startswith(f'"{MARK}'.encode("utf-8", "surrogateescape"))


def describe_fault(error: UnicodeDecodeError) -> str:
    """Return what is wrong with a string that is not UTF-8, which may be one that confine_faults() wrote."""
    found = error.object[error.start : error.start + 3].decode("utf-8", "surrogateescape")
    return MESSAGES.get(found.removeprefix(MARK), MESSAGES[NOT_UNICODE])


def find_faults(text: str) -> Iterator[Fault]:
    """Yield the invalid strings and literals. The search ends at a string without an end."""
    # Without these escapes, which are most of them, every quotation mark begins or ends a string.
    text = text.replace(r"\\", "__")
    for escape in SHORT_ESCAPES:
        text = text.replace(f"\\{escape}", "__")
    start = 0
    while (valid := VALID.match(text, start)) and (fault := FAULT.match(text, valid.end())):
        start = fault.end()
        is_string = fault[0].startswith('"')
        is_name = is_string and AFTER_NAME.match(text, start) is not None
        yield Fault(*fault.span(), kind_of(fault[0]) if is_string else NOT_A_LITERAL, is_name)


def kind_of(string: str) -> str:
    """Return what is wrong with an invalid string without short escapes."""
    if CONTROL_CHARACTER.search(string):
        return CONTROL
    return NOT_AN_ESCAPE if NO_ESCAPE.search(string) else NOT_UNICODE


def escaped_name(name: str) -> str:
    """Return an invalid name as valid JSON: its text in the body, with escapes such as \\xff for invalid bytes."""
    return msgspec.json.encode(name[1:-1].translate(BYTE_ESCAPES)).decode()
