"""One POST to an address that a manager gave, as carefully as an address of a stranger.

Without the record: what is sent, and what became of it. An address is looked at when the connection
is made, and the connection goes to what was looked at, so a name cannot lead elsewhere meanwhile.
Redirects are not followed, and a proxy in the environment is not used.
"""

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.utils.encoding import iri_to_uri
from django.utils.translation import gettext as _

CONNECT_S = 5.0
WHOLE_S = 10.0
MOST_BYTES = 2_000  # of an answer
MOST_SHOWN = 200  # characters of it

Address = IPv4Address | IPv6Address
_NAT64 = ip_network("64:ff9b::/96")


class CannotSend(Exception):
    """No answer came. The message is for the user; `for_good` where trying again is no use."""

    def __init__(self, words: str, *, for_good: bool = False) -> None:
        super().__init__(words)
        self.for_good = for_good


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the other side said; the text is hostile, and cut short."""

    status: int
    text: str


def check_url(url: str, *, allow_private: bool) -> SplitResult:
    """The parts of an address that messages may go to, as far as it tells; CannotSend otherwise."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        words = _("Enter an address that begins with https:// or http://.")
        raise CannotSend(words, for_good=True)
    if parts.username is not None or parts.password is not None:
        words = _("Leave the name and password out: messages are signed instead.")
        raise CannotSend(words, for_good=True)
    literal = _literal(host)
    inside = host.rstrip(".").lower().rpartition(".")[2] == "localhost"
    if not allow_private and (inside or (literal is not None and not is_public(literal))):
        raise _private(host)
    return parts


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet at large, also where it stands for another."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:  # an IPv4 address as networks without IPv4 spell it
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        inner = [address.sixtofour, *(address.teredo or ())]
        if any(one is not None and not is_public(one) for one in inner):
            return False
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_private: bool) -> Answer:
    """Send it; CannotSend where no answer comes. An answer may still be a refusal."""
    parts = check_url(url, allow_private=allow_private)
    deadline = time.monotonic() + WHOLE_S
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    addresses = _resolve(host, port)
    if not allow_private and not all(is_public(address) for address in addresses):
        raise _private(host)
    connection = http.client.HTTPConnection(host, port)
    connection.default_port = 443 if secure else 80  # so that Host names a port as browsers do
    line = _connect(addresses, port)
    try:
        if secure:
            line = _secured(line, host)
        connection.sock = _Timed(line, deadline)
        path = iri_to_uri(parts._replace(scheme="", netloc="", fragment="").geturl()) or "/"
        connection.request("POST", path, body=body, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        text = answer.read(MOST_BYTES).decode(errors="replace")
        return Answer(status=answer.status, text=text[:MOST_SHOWN])
    except ssl.SSLCertVerificationError as error:
        words = _("Its certificate cannot be trusted: %(reason)s.")
        raise CannotSend(words % {"reason": error.verify_message}) from None
    except TimeoutError:
        words = _("It took longer than %(seconds)d seconds to answer.")
        raise CannotSend(words % {"seconds": WHOLE_S}) from None
    except (OSError, ValueError, http.client.HTTPException):
        raise CannotSend(_("The connection broke off before there was an answer.")) from None
    finally:
        line.close()


def _private(host: str) -> CannotSend:
    words = _(
        "%(host)s is a private address. Messages go there only if the operator allows private "
        "networks."
    )
    return CannotSend(words % {"host": host}, for_good=True)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name; asked in a thread, for the resolver knows no time limit."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put([ip_address(str(row[4][0]).partition("%")[0]) for row in rows])
        except (OSError, ValueError):
            found.put([])

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        addresses: list[Address] = found.get(timeout=CONNECT_S)
    except queue.Empty:
        addresses = []
    if not addresses:
        raise CannotSend(_("The name %(host)s was not found.") % {"host": host})
    return list(dict.fromkeys(addresses))


def _connect(addresses: list[Address], port: int) -> socket.socket:
    """A connection to the first of these addresses that takes one."""
    until = time.monotonic() + CONNECT_S
    for address in addresses:
        left = until - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((str(address), port), timeout=left)
        except OSError:
            continue
    raise CannotSend(_("Nothing answers there: the connection could not be made."))


def _secured(plain: socket.socket, host: str) -> ssl.SSLSocket:
    plain.settimeout(CONNECT_S)
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


class _Timed:
    """A socket as http.client uses one, all of whose work together must be done by a deadline.

    A time limit on a socket is for each read: who sends a byte a second would hold us for ever.
    """

    def __init__(self, inner: socket.socket, deadline: float) -> None:
        self._inner, self._deadline = inner, deadline

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(self._left())
        self._inner.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedRead(self._read))

    def close(self) -> None:
        """Not yet: http.client lets go of the connection before the answer is read."""

    def _read(self, buffer: memoryview) -> int:
        self._inner.settimeout(self._left())
        return self._inner.recv_into(buffer)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _TimedRead(io.RawIOBase):
    def __init__(self, read: Any) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._read(buffer))
