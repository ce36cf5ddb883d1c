"""The page at `/` and the highlighter's: what is served, the constants, and both pages in a headless Chromium."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploy_rnn.examples.highlight
import deploy_rnn.serving
from deploy_rnn.examples.highlight import labels as highlight_labels
from deploy_rnn.examples.highlight import model as highlight
from deploy_rnn.serving.engine.engine import Engine
from deploy_rnn.serving.repository import Repository
from deploy_rnn.serving.rest.app import make_app
from deploy_rnn.serving.scheduling.model import Model
from deploy_rnn.serving.settings import Settings
from deploy_rnn.tensor_spec import TensorSpec
from tools.browser import Browser

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
        assert "characters INT64[B, T]" in browser.value(
            'document.querySelector(".signature").textContent'
        )
        browser.value('document.querySelector("nav a").click()')
        browser.until(
            'document.title === "Highlighter" && document.getElementById("latency")?.textContent'
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
        browser.until(VISIBLE_IF_THERE.format("token-text"))
        for token in ("wrong", "secret"):
            browser.value(f'document.getElementById("token-text").value = "{token}"')
            browser.value('document.querySelector("#token button").click()')
            if token == "wrong":
                browser.until(
                    'document.getElementById("token-error")?.textContent === "This token is wrong."'
                )
        browser.until('document.getElementById("missing")?.textContent.includes("deploy-rnn demo")')
        assert not browser.value(VISIBLE.format("highlight"))
        # Neither another page nor another tab asks again.
        browser.new_tab()
        browser.open(f"http://{server.http_address}/")
        browser.until('document.querySelectorAll("article").length === 2')
        assert browser.value('document.getElementById("token")') is None
        names = browser.value(
            '[...document.querySelectorAll("h3")].map((heading) => heading.textContent)'
        )
        assert names == [name, "sum"]
        shown = '[...document.querySelectorAll("article:last-child dl div")].map((tile) => tile.innerText.split("\\n"))'
        browser.until('document.querySelector("article:last-child dd") !== null')
        figures = {title: figure for figure, title in map(sorted, browser.value(shown))}
        assert figures["padding"] == "10.0 %"
        assert figures["rows of a run"] == "1.7"
        # The highlighter's model is not here; and what the other links lead to needs the token.
        assert browser.value('document.querySelector("nav [data-model]").hidden')
        browser.value('document.querySelector("nav [href=metrics]").click()')
        browser.until('document.getElementById("text").open')
        assert "deploy_rnn_ready 1" in browser.value(
            'document.querySelector("#text pre").textContent'
        )
        browser.value('document.querySelector("#text button").click()')
        command = try_model(browser, 2)
        assert ' -H "Authorization: Bearer $DEPLOY_RNN_TOKEN" -d ' in command
        assert "secret" not in browser.value("document.documentElement.outerHTML")
    repository.close(5)


VISIBLE_IF_THERE = 'document.getElementById("{}")?.checkVisibility()'
ERROR = 'document.querySelector("article:nth-child({}) .error").textContent'
ANSWER = 'document.querySelector("article:nth-child({}) .answer").textContent'
LATENCY = 'document.querySelector("article:nth-child({}) .latency").textContent'
CURL = 'document.querySelector("article:nth-child({}) .curl").textContent'


def open_trial(browser: Browser, number: int) -> None:
    """Open the form of a model, counted from 1."""
    browser.value(f'document.querySelector("article:nth-child({number}) summary").click()')
    browser.until(f'document.querySelector("article:nth-child({number}) .trial") !== null')


def fill_in(browser: Browser, number: int, text: str, field: str = "textarea") -> None:
    browser.value(
        f"""{{
        const field = document.querySelector("article:nth-child({number}) {field}");
        field.value = {json.dumps(text)};
        field.dispatchEvent(new Event("input"));
        }}"""
    )


def press(browser: Browser, number: int, button: str = "run") -> None:
    """Press a button of the form, and wait for what comes of it."""
    browser.value(
        f'document.querySelector("article:nth-child({number}) .latency").textContent = ""'
    )
    browser.value(f'document.querySelector("article:nth-child({number}) .{button}").click()')
    browser.until(f"{LATENCY.format(number)} || {ERROR.format(number)}")


def try_model(browser: Browser, number: int) -> str:
    """Run a model on the random input: -> the command that does the same."""
    open_trial(browser, number)
    press(browser, number)
    assert browser.value(ERROR.format(number)) == ""
    return str(browser.value(CURL.format(number)))


def shown_values(text: str) -> np.ndarray:
    """The numbers of the first output that the page shows."""
    _, _, values = text.partition("\n")
    return np.array(json.loads(values))


@pytest.mark.slow
def test_a_model_is_tried_in_the_page(
    real_bundles: Path, real_models: dict[str, nn.Module], run_server: Any, browser: Browser
) -> None:
    """Random and pasted input, answers, mistakes, the command; and a stream, chunk by chunk."""
    repository = Repository(real_bundles, lambda path, name: Model(path, name=name, threads=1))
    repository.load_all()
    with run_server(repository) as server:
        browser.open(f"http://{server.http_address}/")
        browser.until('document.querySelectorAll("article").length === 2')
        signatures = browser.value(
            '[...document.querySelectorAll(".signature")].map((line) => line.textContent)'
        )
        assert "input FP32[B, T, 3]" in signatures[0]
        assert signatures[1] == "tokens INT64[B, T] → output FP32[B, T, 10]"
        check_random_and_pasted_input(browser, real_models["tagger"])
        check_stream(browser, real_models["stream"])
        # A phone shows all of it without scrolling sideways.
        browser.screenshot(390, 800)
        width = "document.documentElement.scrollWidth"
        assert browser.value(width) == browser.value("document.documentElement.clientWidth")
        browser.screenshot(1000, 800)
    repository.close(5)


def check_random_and_pasted_input(browser: Browser, tagger: nn.Module) -> None:
    open_trial(browser, 2)
    fill_in(browser, 2, "3", "label:nth-child(2) input")
    tokens = json.loads(
        browser.value('document.querySelector("article:nth-child(2) textarea").value')
    )
    assert np.shape(tokens) == (1, 3)
    press(browser, 2)
    assert re.fullmatch(
        r"answered in \d+\.\d ms, from this browser and back", browser.value(LATENCY.format(2))
    )
    assert browser.value(ANSWER.format(2)).startswith("output FP32[1, 3, 10]\n[[[")
    # Nested values have their own shape, whatever the fields say; at most 8 of a row are shown.
    fill_in(browser, 2, "[[1, 2],\n [3, 19]]")
    press(browser, 2)
    answer = browser.value(ANSWER.format(2))
    assert answer.count("… 2 more") == 4
    shown = shown_values(answer.replace(", … 2 more", ""))
    with torch.no_grad():
        expected = tagger(torch.tensor([[1, 2], [3, 19]])).numpy()[:, :, :8]
    np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-6)
    browser.value('document.querySelector("article:nth-child(2) .copy").click()')
    browser.until('document.querySelector("article:nth-child(2) .copy").textContent !== "Copy"')
    command = browser.value(CURL.format(2))
    finished = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    from_shell = json.loads(finished.stdout)["outputs"][0]
    assert from_shell["shape"] == [2, 2, 10]
    np.testing.assert_allclose(
        np.reshape(from_shell["data"], (2, 2, 10))[:, :, :8], expected, rtol=1e-5, atol=1e-6
    )
    fill_in(browser, 2, "[1, 2, 3]")  # flat, as large as the fields say
    press(browser, 2)
    assert browser.value(ANSWER.format(2)).startswith("output FP32[1, 3, 10]")
    for text, problem in (
        ("[[1, 2", "“tokens” is not JSON; must be numbers in brackets"),
        ("[[1, 2], [3]]", "“tokens” has rows of different length."),
        ('[["<b>"]]', '“tokens” has "<b>"; must be numbers, true or false.'),
        ("[1, 2]", "“tokens” is nested 1 deep; must be 2, as [B, T]."),
        ("", "“tokens” is not JSON"),
        ("[[99]]", ""),
    ):
        fill_in(browser, 2, text)
        press(browser, 2)
        assert problem in browser.value(ERROR.format(2))
        assert browser.value(ERROR.format(2)) != ""
        assert not browser.value(
            'document.querySelector("article:nth-child(2) .answer").checkVisibility()'
        )
    fill_in(browser, 2, "200000", "label:nth-child(2) input")
    assert (
        browser.value(ERROR.format(2))
        == "[1, 200000] has 200000 values; at most 20000 are made here."
    )


def check_stream(browser: Browser, layer: nn.Module) -> None:
    """The states stay on the server: the chunks of a stream give what the whole sequence gives."""
    open_trial(browser, 1)
    values = torch.randn(1, 6, 3).round(decimals=3)
    with torch.no_grad():
        expected = layer(values)[0].numpy()
    button = 'document.querySelector("article:nth-child(1) .run").textContent'
    for _ in range(2):  # a second stream starts from the beginning
        assert browser.value(button) == "Send the first chunk of a stream"
        for chunk, (start, end) in enumerate([(0, 1), (1, 4), (4, 6)], start=1):
            fill_in(browser, 1, json.dumps(values[:, start:end].numpy().round(3).tolist()))
            press(browser, 1, "last" if end == 6 else "run")
            suffix = ", the last," if end == 6 else ""
            assert browser.value(LATENCY.format(1)).startswith(f"chunk {chunk}{suffix} answered in")
            shown = shown_values(browser.value(ANSWER.format(1)))
            np.testing.assert_allclose(shown, expected[:, start:end], rtol=1e-4, atol=1e-6)
            if end < 6:
                assert browser.value(button) == "Send the next chunk"
                # A mistake in the input does not end the stream.
                fill_in(browser, 1, "[")
                press(browser, 1)
                assert browser.value(button) == "Send the next chunk"
    command = browser.value(CURL.format(1))
    assert '"sequence_end":true' in command


@pytest.mark.slow
def test_a_command_with_hostile_names_is_one_command(
    folder: Path, new_bundle: Any, sum_model: Any, run_server: Any, browser: Browser, tmp_path: Path
) -> None:
    """Names are quoted for the shell, and have no characters that a terminal would obey."""
    tensor = "x'; touch \"$HOME/pwned\"; `id` '\u202e\x1b[2J$(id)"
    model_name = "a'; touch pwned; '"
    new_bundle(folder / model_name)

    class Hostile(sum_model):  # type: ignore[misc]
        inputs = (TensorSpec(tensor, "float32", ("B", "T<b>")),)
        outputs = (TensorSpec("<img src=x onerror=document.body.remove()>", "float32", ("B",)),)
        streaming = False

    repository = Repository(folder, Hostile)
    repository.load_all()
    with run_server(repository) as server:
        browser.open(f"http://{server.http_address}/")
        browser.until('document.querySelectorAll("article").length === 2')
        open_trial(browser, 1)
        press(browser, 1)
        assert browser.value(ERROR.format(1)) == "give `x`: float32 [B, T]."
        command = browser.value(CURL.format(1))
        assert browser.value("document.querySelector('article b, article img')") is None
    repository.close(5)
    assert command.isascii()
    assert command.isprintable()
    fake = tmp_path / "bin" / "curl"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    finished = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PATH": str(fake.parent), "HOME": str(tmp_path)},
    )  # fmt: skip
    address, option, body = finished.stdout.splitlines()
    assert address.endswith("/v2/models/a'%3B%20touch%20pwned%3B%20'/infer")
    assert option == "-d"
    assert json.loads(body)["inputs"][0]["name"] == tensor
    assert not (tmp_path / "pwned").exists()


def test_a_page_for_one_model_is_offered_with_that_model(
    repository: Repository, make_client: Any, tmp_path: Path
) -> None:
    for name, head in (
        ("plain", ""),
        ("special", '<meta name="deploy-rnn-model" content="a &quot;b&quot;">'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(head, encoding="utf-8")
    pages = (tmp_path / "plain", tmp_path / "special")
    index = make_client(make_app(repository, Settings(pages=pages))).get("/").text
    assert '<a href="pages/plain/">plain</a>' in index
    link = '<a href="pages/special/" data-model="a &quot;b&quot;" hidden>special</a>'
    assert link in index


def test_the_configuration_has_the_names_of_the_axes(
    repository: Repository, make_client: Any
) -> None:
    client = make_client(make_app(repository))
    parameters = client.get("/v2/models/sum/config").json()["parameters"]
    assert json.loads(parameters["shapes"]["string_value"]) == {
        "x": ["B", "T"],
        "total": ["B", 1],
        "y": ["B", "T"],
        "total_n": ["B", 1],
    }
