"""Simulated annotators over HTTP: sessions, CSRF, one comparison ahead, as the page's script does.

Own small HTTP/1.1 over asyncio, because the crowd shares the machine with the site: a common
client library would cost more than the site's answers do.
"""

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

FORM = re.compile(r'name="(csrfmiddlewaretoken|lease|key)" value="([^"]*)"')
CHOICES = "1234567"


@dataclass(kw_only=True)
class Tally:
    """What the crowd saw: seconds by request, keys of acknowledged verdicts, and what failed."""

    next_s: list[float] = field(default_factory=list)
    submit_s: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Person:
    """One annotator's browser: a connection that is kept, cookies and a CSRF token."""

    def __init__(self, address: tuple[str, int], path: str, session: str, tally: Tally) -> None:
        self.address, self.path, self.tally = address, path, tally
        self.cookies = {"sid": session}
        self.token = ""
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def work(self, until: float, think: tuple[float, float]) -> None:
        """Judge until the clock says so, with the next comparison fetched while one is read."""
        try:
            await self._judge(until, think)
        except (OSError, asyncio.IncompleteReadError, KeyError, ValueError) as error:
            self.tally.errors.append(repr(error))
        finally:
            self._close()

    async def _judge(self, until: float, think: tuple[float, float]) -> None:
        _, page = await self._ask("GET", self.path)
        form = dict(FORM.findall(page))
        self.token = form["csrfmiddlewaretoken"]
        while time.monotonic() < until and "lease" in form:
            ahead = await self._next(form["lease"])
            await asyncio.sleep(random.uniform(*think))
            await self._submit(form)
            form = dict(FORM.findall(ahead))

    async def _next(self, has: str) -> str:
        started = time.perf_counter()
        status, body = await self._ask("POST", f"{self.path}next/", {"lease": has})
        self.tally.next_s.append(time.perf_counter() - started)
        if status != 200:
            raise ValueError(f"next: {status} {body[:200]}")
        return str(json.loads(body)["card"] or "")

    async def _submit(self, form: dict[str, str]) -> None:
        fields = {"lease": form["lease"], "key": form["key"], "active_ms": "4000"}
        started = time.perf_counter()
        status, body = await self._ask(
            "POST", self.path, fields | {"choice": random.choice(CHOICES)}
        )
        self.tally.submit_s.append(time.perf_counter() - started)
        if status != 200 or json.loads(body)["state"] != "saved":
            raise ValueError(f"submit: {status} {body[:200]}")
        self.tally.keys.append(form["key"])

    async def _ask(
        self, method: str, path: str, fields: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """One request; a connection that the server closed while we thought is opened anew."""
        body = urlencode((fields or {}) | {"csrfmiddlewaretoken": self.token}) if fields else ""
        accept = "application/json" if fields else "text/html"
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n"
            f"Cookie: {cookies}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        if self.streams is None or self.streams[0].at_eof():
            self._close()
            self.streams = await asyncio.open_connection(*self.address)
        reader, writer = self.streams
        writer.write((head + body).encode())
        return await self._answer(reader)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, str]:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        length, closes = 0, False
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            match name.lower():
                case "content-length":
                    length = int(value)
                case "connection":
                    closes = value.lower() == "close"
                case "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0]
        body = (await reader.readexactly(length)).decode()
        if closes:
            self._close()
        return int(lines[0].split()[1]), body

    def _close(self) -> None:
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


async def crowd(
    address: tuple[str, int],
    path: str,
    sessions: list[str],
    *,
    seconds: float,
    think: tuple[float, float],
) -> Tally:
    """Everybody at once, beginning within one time of thinking of each other."""
    tally = Tally()
    until = time.monotonic() + seconds

    async def late(session: str) -> None:
        await asyncio.sleep(random.uniform(0, think[1]))
        await Person(address, path, session, tally).work(until, think)

    await asyncio.gather(*(late(session) for session in sessions))
    return tally


def write_keys(tallies: list[Tally], path: Path) -> None:
    """The keys of every acknowledged verdict, one a line."""
    path.write_text("\n".join(key for tally in tallies for key in tally.keys))


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_ms(values: list[float]) -> dict[str, Any]:
    """Median, 95th and 99th percentile in milliseconds."""
    return {
        "count": len(values),
        "p50": round(1000 * percentile(values, 0.5), 1),
        "p95": round(1000 * percentile(values, 0.95), 1),
        "p99": round(1000 * percentile(values, 0.99), 1),
    }
