"""Who may ask: not the pages of other sites, and not pages that have made themselves this machine."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.rest.other_sites import Host, parse_host
from deploy_rnn.serving.server import Server
from deploy_rnn.serving.settings import Settings

INFER = "/v2/models/sum/infer"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}

FOREIGN = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site", "Origin": "http://localhost:8000"},
    {"Sec-Fetch-Site": "something new"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost.evil.example:8000"},
    {"Origin": "http://user@localhost:8000"},
    {"Origin": "file://"},
)
"""Headers of requests to localhost:8000 that a page elsewhere has sent."""

OWN = (
    ("localhost:8000", {}),
    ("localhost:8000", {"Origin": "http://localhost:8000"}),
    ("localhost:8000", {"Origin": "HTTP://LOCALHOST:8000", "Sec-Fetch-Site": "same-origin"}),
    ("LocalHost:8000", {"Origin": "http://localhost:8000"}),
    ("localhost", {"Origin": "http://localhost"}),
    ("localhost:80", {"Origin": "http://localhost"}),
    ("models.example.com", {"Origin": "https://models.example.com"}),
    ("models.example.com:443", {"Origin": "https://models.example.com"}),
    ("[::1]:8000", {"Origin": "http://[0:0:0:0:0:0:0:1]:8000"}),
    ("localhost:8000", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}),
    # Behind a proxy that has TLS, and sends the Host by which it knows the server.
    ("127.0.0.1:8000", {"Sec-Fetch-Site": "same-origin", "Origin": "https://models.example.com"}),
)
"""Host -> other headers of requests from programs, and from the server's own page."""


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], client: Any) -> None:
    headers = {"Host": "localhost:8000", "Content-Type": "text/plain", **headers}
    for method, path in (
        ("POST", "/v2/repository/models/sum/unload"),
        ("POST", "/v2/repository/models/sum/load"),
        ("POST", "/v2/repository/index"),
        ("POST", INFER),
        ("OPTIONS", INFER),
        ("GET", "/v2/models/sum"),
        ("GET", "/v2/health/ready"),
        ("GET", "/metrics"),
        ("GET", "/"),
        ("GET", "/nothing"),
    ):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 403, (method, path)
    assert "was sent by a page of another site" in answer.json()["error"]
    assert client.post(INFER, json=BODY).status_code == 200


@pytest.mark.parametrize(("host", "headers"), OWN, ids=str)
def test_own_pages_and_programs_are_answered(
    host: str, headers: dict[str, str], client: Any
) -> None:
    assert client.post(INFER, json=BODY, headers={"Host": host, **headers}).status_code == 200


def test_other_sites_may_link_to_the_page_and_no_further(client: Any) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    page = client.get("/", headers=link)
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert client.get("/v2/models/sum", headers=link).status_code == 403
    assert client.post("/", headers=link).status_code == 403
    assert (
        client.get("/page/page.js", headers=link | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    )


def test_the_pages_of_an_allowed_host_may_ask(repository: Repository, make_client: Any) -> None:
    settings = Settings(allowed_hosts=("Models.example.com", "10.0.0.5:8000", "[fd00:0::5]:80"))
    client = make_client(make_app(repository, settings))
    for origin, status in (
        ("https://models.example.com", 200),
        ("http://models.example.com:3000", 200),
        ("http://10.0.0.5:8000", 200),
        ("http://10.0.0.5:8001", 403),
        ("http://[fd00::5]:80", 200),
        ("http://more.models.example.com", 403),
    ):
        headers = {"Host": "localhost:8000", "Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert client.post(INFER, json=BODY, headers=headers).status_code == status, origin


@pytest.fixture(scope="module")
def server(
    sum_folder: Path,
    load_repository: Callable[..., Any],
    run_server: Callable[..., Any],
) -> Iterator[Server]:
    settings = Settings(allowed_hosts=("models.example.com",))
    with load_repository(sum_folder) as repository, run_server(repository, settings) as server:
        yield server


HOSTS = {
    "localhost": 200, "LOCALHOST:1": 200, "localhost.:8000": 200, "127.0.0.1:8000": 200, "127.0.0.2": 200,
    "[::1]:8000": 200, "models.example.com:8443": 200,
    # No one outside can make such a name mean this machine.
    "tagger:8000": 200,
    "evil.example:8000": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "evil.example.": 403,
    "evil.": 403, "192.168.1.7:8000": 403, "0.0.0.0:8000": 403, "[fe80::1]": 403, "": 403,
    "localhost, evil.example": 403, "user@localhost": 403, "localhost:x": 403,
}  # fmt: skip
"""Host of a request to a server for its own machine, without a token -> status."""


@pytest.mark.parametrize("host", HOSTS)
def test_only_this_machine_is_answered_on_loopback(host: str, server: Server) -> None:
    for path in ("/v2", "/", "/v2/health/live"):
        answer = httpx.get(
            f"http://{server.http_address}{path}", headers={"Host": host}, timeout=20
        )
        assert answer.status_code == HOSTS[host]
    if answer.status_code == 403:
        assert f"`Host` (={host!r}) is not this machine; ask localhost" in answer.json()["error"]


def ask_raw(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(request)
        return client.recv(65536)


def test_a_target_that_is_a_whole_url_names_the_host(server: Server) -> None:
    for host, status in (
        (b"evil.example:8000", b"403"),
        (b"me@localhost", b"403"),
        (b"localhost:80", b"200"),
    ):
        request = b"GET http://%b/v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" % host
        assert ask_raw(server.http_address, request).startswith(b"HTTP/1.1 " + status)


def test_a_browser_cannot_speak_grpc(server: Server) -> None:
    method = b"/inference.GRPCInferenceService/RepositoryModelUnload"
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\n" % method
    body = b"\0\0\0\0\5\x12\3sum"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert b"HTTP/1.1 200" not in ask_raw(server.grpc_address, request)
    assert httpx.get(f"http://{server.http_address}/v2/models/sum", timeout=20).status_code == 200


def test_any_host_is_answered_with_a_token(repository: Repository, run_server: Any) -> None:
    headers = {"Host": "models.example.com", "Authorization": "Bearer secret"}
    with run_server(repository, Settings(token="secret")) as server:
        url = f"http://{server.http_address}/v2"
        assert httpx.get(url, headers=headers, timeout=20).status_code == 200


def test_hosts_are_read_as_browsers_write_them() -> None:
    assert parse_host("[0:0::1]:80") == Host("::1", 80)
    assert parse_host("A.Example:") == Host("a.example")
    for text in ("::1", "a b", "[::1", "a:b", "a\x00", "ä", "", "x" * 300, "999.0.0.1"):
        with pytest.raises(ValueError, match=r"is not a host|does not appear to be an IPv4"):
            parse_host(text)
