"""One attempt to ask a server that may be down, slow, broken or not what it says it is."""

import asyncio
import json
import random
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx2

from jobs.run_dir import RunDirError

SHOWN_CHARACTERS = 200  # of what a server says in an error
ERROR_BYTES = 16_384  # read of an error's body
IDLE_CONNECTION_S = 2.0  # below the 5 s after which vLLM closes one, so that no request meets that


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What servers may take of time and memory. Tests have smaller ones."""

    in_flight: int = 64  # requests at a time to one host
    connect_s: float = 5
    check_s: float = 60  # a list of models, or a single token
    attempt_s: float = 300  # a whole answer, from connecting to its last byte
    token_s: float = 0.1  # and so much more for each token that it may have
    patience_s: float = 120  # without any good answer
    tries: int = 5  # of one request that fails while others are answered
    first_pause_s: float = 0.5  # doubled with each failure in a row
    longest_pause_s: float = 30
    longest_retry_after_s: float = 60
    refused_rest_s: float = 120  # of a host that somebody has to mend
    body_bytes: int = 2**20  # an answer's, before its tokens
    token_bytes: int = 512
    tell_s: float = 2.0  # the longest that `sample` keeps its caller waiting for a group

    def pause(self, failures: int) -> float:
        """Seconds before the next try, with jitter: those who failed together come apart."""
        doubled = self.first_pause_s * 2.0 ** min(failures - 1, 16)
        return min(doubled, self.longest_pause_s) * random.uniform(0.5, 1)


class Failed(Exception):
    """An attempt came to nothing; another may succeed. `status` is 0 where there was none."""

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class Busy(Failed):
    """The host wants to be left alone for a while, which says nothing against the request."""

    def __init__(self, reason: str, after: float | None) -> None:
        super().__init__(reason)
        self.after = after


class Garbage(Failed):
    """An answer that cannot be true."""


class Refused(Exception):
    """The host's answer to this request will not change. `said` is the host's own words."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}" if said else str(status))
        self.status, self.said = status, said


class Host:
    """One server: its connections, and how it has been doing.

    `ready` is false until the pool's check has found it fit, and after each failure again.
    `refusal` says why it must not be used, until a check finds it fit; `checked` tells of each.
    """

    def __init__(self, url: str, key: str | None, limits: Limits) -> None:
        self.url, self._key, self._limits = base_url(url), key, limits
        self._client = httpx2.AsyncClient(
            verify=_trusted(),
            follow_redirects=False,
            trust_env=False,  # no proxies, no .netrc: the key goes to this address only
            timeout=httpx2.Timeout(None, connect=limits.connect_s),
            limits=httpx2.Limits(
                max_connections=limits.in_flight + 1, keepalive_expiry=IDLE_CONNECTION_S
            ),
        )
        self.ready = self.checking = False
        self.in_flight, self.allowed = 0, limits.in_flight
        self.failures, self.rests_until = 0, 0.0
        self.failing_since: float | None = None
        self.trouble = ""
        self.refusal: RunDirError | None = None
        self.checked = asyncio.Event()

    async def call(
        self, path: str, body: dict[str, Any] | None = None, *, seconds: float, tokens: int = 0
    ) -> Any:
        """The JSON value that a POST of `body` (a GET without one) is answered with.

        The answer may be as long as one about so many `tokens`. Raises Failed or Refused.
        """
        data = await self.fetch(path, body, seconds=seconds, tokens=tokens)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            shown = self.clean(data[:ERROR_BYTES].decode(errors="replace"))
            raise Garbage(f"its answer is not JSON: {shown!r}") from None

    async def fetch(
        self, path: str, body: dict[str, Any] | None = None, *, seconds: float, tokens: int = 0
    ) -> bytes:
        """The same, whatever it is."""
        most = self._limits.body_bytes + tokens * self._limits.token_bytes
        try:
            async with asyncio.timeout(seconds):
                status, headers, data = await self._exchange(path, body, most)
        except TimeoutError:
            raise Failed(f"no whole answer within {seconds:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Failed(self.clean(f"it cannot be reached: {error}")) from None
        except (httpx2.HTTPError, OSError) as error:
            told = str(error) or type(error).__name__
            raise Failed(self.clean(f"the connection broke: {told}")) from None
        if status != 200:
            raise self._problem(status, headers, data)
        return data

    async def _exchange(
        self, path: str, body: dict[str, Any] | None, most: int
    ) -> tuple[int, httpx2.Headers, bytes]:
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        content = None if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        url = self.url + path
        async with self._client.stream(method, url, content=content, headers=headers) as answer:
            data = bytearray()
            async for chunk in answer.aiter_raw():
                data += chunk
                if answer.status_code != 200 and len(data) > ERROR_BYTES:
                    break
                if len(data) > most:
                    raise Garbage(f"it sent more than {most} bytes")
            return answer.status_code, answer.headers, bytes(data)

    def _problem(self, status: int, headers: httpx2.Headers, data: bytes) -> Exception:
        said = self.clean(_message(data[:ERROR_BYTES]))
        told = f"it answered {status}" + (f": {said}" if said else "")
        if status in (429, 503):
            return Busy(told, _retry_after(headers.get("retry-after", "")))
        if status >= 500 or status == 408:
            return Failed(told, status)
        if status < 300:
            return Garbage(told)
        return Refused(status, said)

    def clean(self, text: str) -> str:
        """Somebody else's text, fit for an error: short, printable, never with the key in it."""
        if self._key:
            text = text.replace(self._key, "[key]")
        plain = "".join(letter if letter.isprintable() else " " for letter in text)
        return " ".join(plain.split())[:SHOWN_CHARACTERS]

    def free(self, now: float, at_once: int) -> bool:
        """Whether it may be sent one more request, where so many at once are right."""
        most = min(self.allowed, at_once)
        return self.ready and now >= self.rests_until and self.in_flight < most

    def good(self) -> None:
        """It answered a request as it should."""
        self.failing_since, self.failures = None, 0
        self.allowed = min(self._limits.in_flight, self.allowed + 1)

    def fit(self) -> None:
        """It passed the check. Requests may fail all the same: its next rest will be longer."""
        self.failing_since, self.ready, self.refusal = None, True, None

    def refuse(self, refusal: RunDirError) -> None:
        """It is not what it should be, and will not be soon."""
        now = time.monotonic()
        self.refusal, self.trouble = refusal, self.clean(str(refusal))
        self.failing_since = self.failing_since or now
        self.ready, self.rests_until = False, now + self._limits.refused_rest_s

    def tell_checked(self) -> None:
        """Wake whoever waits for the end of a check."""
        self.checked.set()
        self.checked.clear()

    async def vouched(self) -> bool:
        """Whether an answer of its counts. It may have been started anew as something else: while
        it is in doubt, its next check tells."""
        if not self.ready and not self.refusal:
            await self.checked.wait()
        return self.ready

    def bad(self, failure: Failed, *, rest: bool) -> None:
        """It did not. Failures during a rest come from the same trouble and do not prolong it."""
        now = time.monotonic()
        self.trouble = self.clean(str(failure))
        busy = isinstance(failure, Busy)
        if not busy or not self.in_flight:  # busy with our other requests is no trouble
            self.failing_since = self.failing_since or now
        if not rest:
            return
        self.ready = self.ready and busy
        if now < self.rests_until:
            return
        self.failures += 1
        wait = failure.after if isinstance(failure, Busy) else None
        if wait is None:
            wait = self._limits.pause(self.failures)
        if busy:
            self.allowed = max(1, self.allowed // 2)
        least, most = self._limits.first_pause_s / 2, self._limits.longest_retry_after_s
        self.rests_until = now + min(max(wait, least), most)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


@cache
def _trusted() -> ssl.SSLContext:
    """The system's certificates; they take a while to read."""
    return httpx2.create_ssl_context(trust_env=False)


def base_url(url: str) -> str:
    """The address without what follows the server's own part; RunDirError where it is none."""
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise RunDirError(f"a server's address cannot be read: {error}") from None
    shown = f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}".rstrip("/")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RunDirError(
            f"{shown!r} is no server's address; it must begin with http:// or https://"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise RunDirError(
            f"the address of {shown} must hold no name, password or query; a key goes into the "
            "file that PREFLOOP_SERVER_KEY_FILE names"
        )
    return shown.removesuffix("/v1")


def _message(data: bytes) -> str:
    """What an error's body says, in one of the shapes that servers use."""
    text = data.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and name in value:
            value = value[name]
    return value if isinstance(value, str) else json.dumps(value)


def _retry_after(header: str) -> float | None:
    """Seconds, from either form of the header."""
    if header.isascii() and header.isdigit():
        return float(header[:9])
    try:
        at = parsedate_to_datetime(header)
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
