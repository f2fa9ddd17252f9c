"""Open the socket that a server listens on."""

import socket

from service.settings import PREFIX

BACKLOG = 2048


class CannotListen(OSError):
    """The server cannot listen on the configured address."""


def listen(host: str, port: int, prefix: str = PREFIX) -> socket.socket:
    """Return a socket that listens on an IPv4 or IPv6 address.

    Args:
        host: The address.
        port: The port, or 0 for any free port.
        prefix: The prefix of the server's settings, for error messages.

    Raises:
        CannotListen: The address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror}. Set {prefix}HOST or {prefix}PORT."
        ) from error
