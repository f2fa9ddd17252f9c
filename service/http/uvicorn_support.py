"""Refuse to start with a uvicorn release that would bypass admission control."""

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The same range as in pyproject.toml. `make test-uvicorn` tests its oldest and newest version. Versions before 0.53
# close a connection without announcing it in the response's headers.
SUPPORTED = "uvicorn>=0.53,<0.55"
HOOK = "_start_asgi_task"


class UnsupportedUvicorn(RuntimeError):
    """The installed uvicorn does not have the hook that service/http/protocol.py overrides."""


def check_uvicorn() -> None:
    """Check that uvicorn starts requests through a method that service/http/protocol.py can override.

    The method is private. A release without it, such as 0.44 or older, starts requests in a different way. The server
    would appear to work, but requests in flight would not be limited.

    Raises:
        UnsupportedUvicorn: The method is missing.
    """
    if not hasattr(HttpToolsProtocol, HOOK):
        raise UnsupportedUvicorn(
            f"uvicorn {uvicorn.__version__} has no HttpToolsProtocol.{HOOK}, so requests in flight cannot be limited. "
            f"Install '{SUPPORTED}'."
        )
