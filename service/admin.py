"""/admin: for whoever runs the service. With a key of its own and, if CTR_ADMIN_PORT is set, on a port of its own."""

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.app import add_error_handlers, add_probes
from service.control import Channel, Done, Gone, Reload
from service.errors import NotReady, Refused, Unauthorised
from service.incoming import JSON
from service.keys import ApiKeys

RELOAD_S = 600.0  # a check of a large bundle, and every worker in turn


class Reloaded(msgspec.Struct):
    """The version that all workers serve now."""

    version: str


def admin_app(app: FastAPI) -> FastAPI:
    """For a port of its own: the probes and metrics of `app`, whose state it shares."""
    admin = FastAPI(docs_url=None, openapi_url=None, redoc_url=None, redirect_slashes=False)
    admin.state = app.state
    add_error_handlers(admin)
    add_probes(admin)
    return admin


def add_admin(app: FastAPI, keys: ApiKeys, channel: Channel) -> None:
    async def reload(request: Request) -> Response:
        """200 when all workers serve what is current; 409 when it is refused and the old one goes on."""
        if keys.name_of(request.headers) is None:
            raise Unauthorised("Send the key of CTR_ADMIN_KEY_FILE: Authorization: Bearer KEY")
        done = await _ask(channel)
        if done.problem is not None:
            raise Refused(f"{done.problem}; the model that was served before goes on")
        return Response(msgspec.json.encode(Reloaded(done.text)), media_type=JSON)

    app.add_route("/admin/reload", reload, methods=["POST"])


async def _ask(channel: Channel) -> Done:
    try:
        return await channel.ask(Reload(), RELOAD_S)
    except Gone as error:
        raise NotReady(f"The supervisor did not answer ({error}): see its log") from error
