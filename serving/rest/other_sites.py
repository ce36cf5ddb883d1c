"""Requests that a web page makes a browser send: a page reaches what its visitor's machine reaches, this server too.

1. A page of another site sends a request. It cannot read the answer, but the request is run, and unloads a model, say.
   Browsers say where such a request comes from.
2. A page gives its own name the address 127.0.0.1 (DNS rebinding). To the browser, this server is then the page's own
   site; only the header `Host` shows it.

Programs send what they like, and mostly none of these headers. They are let in or not by the token.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from ipaddress import ip_address

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..settings import is_loopback
from .direct import Begin, DirectApp

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]{1,255})(?::(\d{0,5}))?", re.ASCII | re.IGNORECASE)

ORIGIN = re.compile(r"([a-z][a-z\d+.-]*)://(.+)", re.ASCII | re.IGNORECASE)

DEFAULT_PORTS = {"http": 80, "https": 443}

OWN_SITES = (b"same-origin", b"none")
"""Values of `Sec-Fetch-Site`: sent by a page of this server, or asked for by a person. "same-site" is a page on another
port of the same host, which may be anyone's."""

MAX_SHOWN = 100
"""Characters of a header in a message."""


@dataclass(frozen=True)
class Host:
    """A host, as headers name it.

    Attributes:
        name: in lower case; an address in its shortest form, without brackets.
        port: None if it is left out.
    """

    name: str
    port: int | None = None

    @cached_property
    def is_loopback(self) -> bool:
        return is_loopback(self.name)

    @property
    def is_public(self) -> bool:
        """Whether it is an address, or a name that anyone may own; those without a dot belong to the local network."""
        return "." in self.name or ":" in self.name

    def is_in(self, hosts: Set["Host"]) -> bool:
        """Whether it is one of `hosts`, where one without a port stands for all ports."""
        return self in hosts or Host(self.name) in hosts


@lru_cache(maxsize=256)
def parse_host(text: str) -> Host:
    """
    Raises:
        ValueError: it is not a name or an address, with or without a port; an IPv6 address is in brackets.
    """
    match = HOST.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:MAX_SHOWN]!r} is not a host.")
    name, port = match.groups()
    name = name.strip("[]").lower()
    if name == "localhost.":  # the dot says that the name is complete
        name = "localhost"
    if ":" in name or name.replace(".", "").isdigit():
        name = str(ip_address(name))
    return Host(name, int(port) if port else None)


def parse_hosts(texts: Sequence[str]) -> frozenset[Host]:
    """
    Raises:
        ValueError: one of them is not a host.
    """
    hosts = set()
    for text in texts:
        try:
            hosts.add(parse_host(text))
        except ValueError:
            raise ValueError(
                f"allowed host {text!r} must be a name or an address, with or without a port, such as "
                "models.example.com or [fd00::5]:8000."
            ) from None
    return frozenset(hosts)


class OwnSite:
    """Refuses requests of pages of other sites (1.).

    Args:
        page_paths: what other sites may link to.
        allowed_hosts: hosts whose pages may ask, besides this server's own.
    """

    def __init__(self, app: DirectApp, page_paths: Set[str], allowed_hosts: Set[Host]) -> None:
        self._app = app
        self._page_paths = page_paths
        self._allowed_hosts = allowed_hosts

    def direct(self, scope: Scope) -> Begin | None:
        return self._app.direct(scope) if self._is_own(scope) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and not self._is_own(scope):
            message = (
                "this request was sent by a page of another site; only programs and this server's own pages may ask. "
                "If the page is yours, start the server with its host as `--allowed-host`."
            )
            app = JSONResponse({"error": message}, 403)
        await app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        origins = _values(scope, b"origin")
        sites = _values(scope, b"sec-fetch-site")
        if not origins and not sites:
            return True
        if len(origins) > 1 or len(sites) > 1:
            return False
        if origins and self._is_allowed(origins[0]):
            return True
        # A proxy may have changed the Host since, so that the Origin is compared only for want of this.
        if sites:
            return sites[0].lower() in OWN_SITES or self._is_link(scope)
        return _is_origin_of(origins[0], _values(scope, b"host"))

    def _is_allowed(self, origin: bytes) -> bool:
        try:
            _, host = _parse_origin(origin)
        except ValueError:
            return False
        return host.is_in(self._allowed_hosts)

    def _is_link(self, scope: Scope) -> bool:
        """Whether a person follows a link to a page, which changes nothing, and which no other page can frame."""
        return (
            scope["method"] == "GET"
            and scope["path"] in self._page_paths
            and _values(scope, b"sec-fetch-mode") == [b"navigate"]
        )


class OwnHost:
    """Refuses requests to a host that is not this machine (2.).

    Args:
        allowed_hosts: other hosts that are answered.
    """

    def __init__(self, app: DirectApp, allowed_hosts: Set[Host]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    def direct(self, scope: Scope) -> Begin | None:
        is_own = all(map(self._is_own, _values(scope, b"host")))
        return self._app.direct(scope) if is_own else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        hosts = _values(scope, b"host") if scope["type"] == "http" else []
        for host in hosts:
            if not self._is_own(host):
                text = host.decode("latin-1")[:MAX_SHOWN]
                message = (
                    f"`Host` (={text!r}) is not this machine; ask localhost or 127.0.0.1, or start the server with "
                    "this host as `--allowed-host`, or with a token."
                )
                app = JSONResponse({"error": message}, 403)
        await app(scope, receive, send)

    def _is_own(self, value: bytes) -> bool:
        try:
            host = parse_host(value.decode("latin-1"))
        except ValueError:
            return False
        return host.is_loopback or not host.is_public or host.is_in(self._allowed_hosts)


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for header, value in scope["headers"] if header == name]


def _is_origin_of(origin: bytes, hosts: Sequence[bytes]) -> bool:
    """Whether an `Origin` and the `Host` are the same; a port that is left out is that of the origin's scheme."""
    try:
        (text,) = hosts
        host = parse_host(text.decode("latin-1"))
        scheme, origin_host = _parse_origin(origin)
    except ValueError:
        return False
    default = DEFAULT_PORTS.get(scheme)
    same_port = (host.port or default) == (origin_host.port or default)
    return host.name == origin_host.name and same_port


def _parse_origin(origin: bytes) -> tuple[str, Host]:
    """The scheme and the host of an `Origin`.

    Raises:
        ValueError: it is `null`, or has no host.
    """
    match = ORIGIN.fullmatch(origin.decode("latin-1"))
    if match is None:
        raise ValueError("the origin has no host.")
    scheme, host = match.groups()
    return scheme.lower(), parse_host(host)
