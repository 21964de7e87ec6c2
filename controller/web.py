"""The HTTP address: GET /health says whether the controller serves. No more than that yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

READ_S = 5.0
REQUEST_BYTES_MAX = 8_192


async def serve_health(host: str, port: int, healthy: Callable[[], bool]) -> asyncio.Server:
    """Begin to answer on the address and return the server; close it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_S)
            words = head.split(b"\r\n", 1)[0].split(b" ")
            status, body = _respond(words, healthy)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # a peer that does not finish its request gets no answer
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port, limit=REQUEST_BYTES_MAX)


def _respond(words: list[bytes], healthy: Callable[[], bool]) -> tuple[str, bytes]:
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
        return "405 Method Not Allowed", b"only GET is answered here\n"
    if words[1].split(b"?")[0] != b"/health":
        return "404 Not Found", b"only /health is here\n"
    if healthy():
        return "200 OK", b"SERVING\n"
    return "503 Service Unavailable", b"NOT_SERVING\n"
