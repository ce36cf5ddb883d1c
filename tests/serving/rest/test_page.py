"""The page at `/` and the highlighter's: what is served, the constants, and both pages in a headless Chromium."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import deploy_rnn.examples.highlight
import deploy_rnn.serving
from deploy_rnn.examples.highlight import labels as highlight_labels
from deploy_rnn.examples.highlight import model as highlight
from deploy_rnn.serving.engine.engine import Engine
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.settings import Settings

PAGE = Path(deploy_rnn.serving.__file__).parent / "rest" / "page"
HIGHLIGHTER = Path(deploy_rnn.examples.highlight.__file__).parent / "page"
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


@pytest.mark.parametrize("token", [None, "secret"])
def test_the_page_is_served_to_everyone(
    token: str | None, repository: Repository, make_client: Any
) -> None:
    client = make_client(make_app(repository, Settings(token=token)))
    for file in PAGE.iterdir():
        answer = client.get("/" if file.name == "index.html" else f"/page/{file.name}")
        assert answer.status_code == 200
        assert answer.content == file.read_bytes()
        assert answer.headers["content-type"] == f"{TYPES[file.suffix[1:]]}; charset=utf-8"
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/metrics").status_code == (401 if token else 200)


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/", "/page/..%2Frest.py"])
def test_nothing_else_is_served(path: str, client: Any) -> None:
    assert client.get(path).status_code == 404


def test_other_pages_are_served_to_everyone(
    repository: Repository, make_client: Any, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(f"<h1>{name}</h1>", encoding="utf-8")
    (tmp_path / "first" / "more.js").write_text("1", encoding="utf-8")
    pages = (tmp_path / "first", tmp_path / "second")
    client = make_client(make_app(repository, Settings(token="secret", pages=pages)))
    for name in ("first", "second"):
        answer = client.get(f"/pages/{name}/")
        assert (answer.status_code, answer.text) == (200, f"<h1>{name}</h1>")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert f'<a href="pages/{name}/">{name}</a>' in client.get("/").text
    assert client.get("/pages/first/more.js").text == "1"
    for path in ("/pages/third/", "/pages/second/more.js", "/pages/first/..%2Fsecond/index.html"):
        assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 404


def test_a_folder_that_is_not_a_page(repository: Repository, tmp_path: Path) -> None:
    for name in ("empty", "a {name}", "odd"):
        (tmp_path / name).mkdir()
    for name in ("a {name}", "odd"):
        (tmp_path / name / "index.html").write_text("", encoding="utf-8")
    (tmp_path / "odd" / "program.exe").write_bytes(b"")
    for name, message in (
        ("missing", "missing' is not a page: index.html is missing."),
        ("empty", "empty' is not a page: index.html is missing."),
        ("a {name}", "the name of its folder must have only letters, digits"),
        (
            "odd",
            "'program.exe' must have only letters, digits, '.', '-', '_', and end in one of css, html, js, ",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            make_app(repository, Settings(pages=(tmp_path / name,)))


@pytest.mark.parametrize("folder", [PAGE, HIGHLIGHTER], ids=["server", "highlighter"])
def test_nothing_comes_from_elsewhere(folder: Path) -> None:
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8")
        without_comments = re.sub(r"^\s*// .*$|; // .*$| // name .*$", "", text, flags=re.M)
        assert "//" not in without_comments
        assert "innerHTML" not in text
        for link in re.findall(r'(?:src|href)="([^"]+)"', text):
            assert link.startswith("data:") or not re.match(r"\w+:|/", link)


def test_the_highlighter_s_constants_are_those_of_its_model() -> None:
    text = (HIGHLIGHTER / "highlight.js").read_text(encoding="utf-8")
    constants = {
        name: json.loads(value)
        for name, value in re.findall(r"^export const ([A-Z]+) = (.*);$", text, re.M)
    }
    of_the_model = {
        name: getattr(highlight, name)
        for name in ("ALPHABET", "OUTSIDE", "OTHER", "WINDOW", "CONTEXT")
    }
    assert constants == {"LABELS": list(highlight_labels.LABELS), **of_the_model}


def test_every_label_has_a_style() -> None:
    styles = (HIGHLIGHTER / "highlight.css").read_text(encoding="utf-8")
    unstyled = {"space", "name"}
    assert {
        label for label in highlight_labels.LABELS if f"\n.{label} {{" not in styles
    } == unstyled


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """A headless Chromium, driven over a pipe by the DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        self._pid = os.posix_spawn(
            program, [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"], os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, read_there, 3),
                (os.POSIX_SPAWN_DUP2, write_there, 4),
            ],
        )  # fmt: skip
        os.close(read_there)
        os.close(write_there)
        self._from = os.fdopen(read_here, "rb")
        self._to = os.fdopen(write_here, "wb")
        self._numbers = count(1)
        self._rest = b""
        targets = self._call("Target.getTargets")["targetInfos"]
        target = next(target for target in targets if target["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    _session: dict[str, str] = {}  # noqa: RUF012

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._to.write(
            json.dumps({"id": number, "method": method, "params": params, **self._session}).encode()
            + b"\0"
        )
        self._to.flush()
        message = self._message()
        while message.get("id") != number:
            message = self._message()
        assert "error" not in message, message
        return dict(message["result"])

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._from.fileno(), 2**16)
            assert piece, "Chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.until(f'location.href === "{url}" && document.readyState === "complete"')

    def value(self, expression: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        deadline = time.monotonic() + 120
        while not self.value(expression):
            assert time.monotonic() < deadline, self.value("document.body?.innerText")
            time.sleep(0.02)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._from.close()
        self._to.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


COLOURED = '[...document.querySelectorAll("#coloured span")].map((span) => [span.className, span.textContent])'
VISIBLE = 'document.getElementById("{}").checkVisibility()'
HIGHLIGHTER_PAGE = Settings(pages=(HIGHLIGHTER,))


def labels_of(source: str, engine: Engine) -> list[str]:
    scores = engine.run({"characters": highlight.windows(highlight.encode(source))})["output"]
    return [highlight_labels.LABELS[label] for label in highlight.join(scores, len(source))]


def type_text(text: str) -> str:
    return f"""{{
        const source = document.getElementById("source");
        source.value = {json.dumps(text)};
        source.dispatchEvent(new Event("input"));
    }}"""


@pytest.mark.slow
def test_the_highlighter_colours_what_is_typed(
    highlighter: Path, run_server: Any, browser: Browser
) -> None:
    """Characters and labels are those of the engine, also for text of several requests and with unusual characters."""
    repository = Repository(highlighter, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    engine = Engine(highlighter)
    long = (
        Path(highlight.__file__).read_text(encoding="utf-8") + "x = '\u00e9\U0001f600\t'\r\n"[:-2]
    )
    with run_server(repository, HIGHLIGHTER_PAGE) as server:
        browser.open(f"http://{server.http_address}/")
        browser.until('document.querySelector("dd") !== null')
        assert browser.value('document.querySelector("h3").textContent') == "highlight"
        assert "characters INT64[·,·]" in browser.value(
            'document.querySelector(".signature").textContent'
        )
        browser.value('document.querySelector("nav a").click()')
        browser.until(
            'document.title === "Highlighter" && document.getElementById("latency").textContent'
        )
        texts = [
            browser.value('document.getElementById("source").value'),
            long,
            "def f(): pass",
            "&<b>" * 20,
            "x",
        ]
        for text in texts:
            browser.value(type_text(text))
            browser.until(
                f'document.getElementById("latency").textContent.startsWith("{len(text)} characters read in")'
            )
            spans = browser.value(COLOURED)
            assert "".join(part for _, part in spans) == text
            assert [label for label, part in spans for _ in part] == labels_of(text, engine)
        browser.value(type_text(""))
        browser.until('document.getElementById("latency").textContent === ""')
        assert browser.value(COLOURED) == []
        browser.open(f"http://{server.http_address}/")
        browser.until('document.querySelector("dd")?.textContent > 5')
    repository.close(5)
    browser.until('document.getElementById("state").textContent === "the server cannot be reached"')


@pytest.mark.slow
def test_a_token_and_strange_names(
    folder: Path, new_bundle: Any, sum_model: Any, run_server: Any, browser: Browser
) -> None:
    """Nothing is shown before the token is given; and the names of models may contain markup."""
    name = '<img src=x onerror=document.body.remove()> "\\\\'
    new_bundle(folder / name)
    repository = Repository(folder, sum_model)
    repository.load_all()
    with run_server(repository, Settings(token="secret", pages=(HIGHLIGHTER,))) as server:
        highlighter_url = f"http://{server.http_address}/pages/page/"
        browser.open(highlighter_url)
        browser.until(
            'document.getElementById("missing").textContent.startsWith("This server requires a token")'
        )
        browser.open(f"http://{server.http_address}/")
        browser.until(VISIBLE.format("token-text"))
        for token in ("wrong", "secret"):
            browser.value(f'document.getElementById("token-text").value = "{token}"')
            browser.value('document.querySelector("#token button").click()')
            if token == "wrong":
                browser.until(
                    'document.getElementById("token-error").textContent === "This token is wrong."'
                )
        browser.until('document.querySelectorAll("article").length === 2')
        assert not browser.value(VISIBLE.format("token"))
        names = browser.value(
            '[...document.querySelectorAll("h3")].map((heading) => heading.textContent)'
        )
        assert names == [name, "sum"]
        shown = '[...document.querySelectorAll("article:last-child dl div")].map((tile) => tile.innerText.split("\\n"))'
        figures = {title: figure for figure, title in map(sorted, browser.value(shown))}
        assert figures["padding"] == "10.0 %"
        assert figures["rows of a run"] == "1.7"
        browser.open(highlighter_url)
        browser.until('document.getElementById("missing").textContent.includes("deploy-rnn demo")')
        assert not browser.value(VISIBLE.format("highlight"))
    repository.close(5)
