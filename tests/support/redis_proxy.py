"""A proxy before a Redis that does what networks do: it is slow, cuts connections in the middle, or mixes up bytes."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """delay_s: before each reply. cut_after: bytes of a reply, then the connection ends. garble: of each reply."""

    port: int
    delay_s: float = 0.0
    cut_after: int | None = None
    garble: bool = False
    connections: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def _forth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.garble:
                data = bytes(byte ^ 0x15 for byte in data)
            if self.cut_after is not None:
                writer.write(data[: self.cut_after])
                break
            writer.write(data)
        writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.port)
            self._writers.add(to_writer)
            await asyncio.gather(self._forth(reader, to_writer), self._back(to_reader, writer))
        except (OSError, asyncio.CancelledError):
            writer.close()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def proxy_before(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Proxy, int]]:
    """And the port that it listens on. tls: of the server that it pretends to be."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield proxy, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        proxy.close()
        await asyncio.sleep(0.05)
