"""The /admin API, with which an operator controls a running server.

It has its own API key and, if CTR_ADMIN_PORT is set, its own port.
"""

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api.auth import ApiKeys
from service.api.body import JSON
from service.app import add_error_handlers, add_probes
from service.errors import Unauthorized


class Reloaded(msgspec.Struct):
    """The version that all workers now serve."""

    version: str


def admin_app(app: FastAPI) -> FastAPI:
    """Return the application for the admin port. It shares the state, the probes and the metrics of `app`."""
    admin = FastAPI(docs_url=None, openapi_url=None, redoc_url=None, redirect_slashes=False)
    admin.state = app.state
    add_error_handlers(admin)
    add_probes(admin)
    return admin


def add_admin(app: FastAPI, keys: ApiKeys, reload_model: Callable[[], Awaitable[str]]) -> None:
    """Add POST /admin/reload.

    Args:
        app: The application to add the route to.
        keys: The admin key.
        reload_model: Makes all workers serve the current bundle, and returns its version. Raises Problem.
    """

    async def reload(request: Request) -> Response:
        """Return 200 once all workers serve the current bundle, or 409 if it was refused and they keep the old one."""
        if keys.name_of(request.headers) is None:
            raise Unauthorized("Send the key from CTR_ADMIN_KEY_FILE in the header Authorization: Bearer KEY.")
        return Response(msgspec.json.encode(Reloaded(await reload_model())), media_type=JSON)

    app.add_route("/admin/reload", reload, methods=["POST"])
