"""The module for browsers in a headless Chromium: it answers what `Engine` answers. And the pages of the example.

The package is the one that `npm pack` writes; everything is served from this machine.
"""

import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from deploy_rnn.errors import InputError
from deploy_rnn.examples.highlight import labels as highlight_labels
from deploy_rnn.examples.highlight import model as highlight
from deploy_rnn.examples.highlight import web_page
from deploy_rnn.export import export_bundle
from deploy_rnn.serving import Engine
from tools.browser import Browser
from tools.static_site import StaticSite

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.web

Arrays = Mapping[str, np.ndarray]


class Tagger(nn.Module):
    """Tokens (B, T), lengths (B,) -> scores (B, longest row, 3), time-first inside."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 4)
        self.layer = layer(4, 5, bidirectional=True)
        self.score = nn.Linear(10, 3)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embed(tokens.t()), lengths, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.layer(packed)[0])
        return self.score(output).transpose(0, 1)


class WithAverage(nn.Module):
    """Each row looks at the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.mean(dim=0, keepdim=True))[0]


def write_bundles(folder: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (2, 6))
    for layer in (nn.RNN, nn.GRU, nn.LSTM):
        example = (tokens, torch.tensor([6, 4]))
        export_bundle(
            Tagger(layer).eval(), example, folder / layer.__name__, buckets=[6], sizes=(2,)
        )
    keep_graphs(folder / "GRU", folder / "buckets", "unrolled-6.onnx")
    layer = nn.LSTM(3, 4, num_layers=2)
    export_bundle(layer, torch.randn(5, 2, 3), folder / "stream", streaming=True, sizes=(2,))
    export_bundle(
        WithAverage().eval(), torch.randn(2, 5, 3), folder / "average", forms=["scan"], sizes=(2,)
    )
    precisions = ("float32", "int8", "float16")
    tagger = Tagger(nn.GRU).eval()
    target = folder / "precisions"
    export_bundle(tagger, example, target, forms=["scan"], precision=precisions, sizes=(2,))


def keep_graphs(bundle: Path, folder: Path, *files: str) -> None:
    """A copy of a bundle with these graphs only."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["file"] in files]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed module, onnxruntime-web, bundles, and a page that tests can call."""
    folder = tmp_path_factory.mktemp("site")
    write_bundles(folder)
    packed = tmp_path_factory.mktemp("packed")
    command = ["npm", "pack", "--silent", "--pack-destination", str(packed)]
    subprocess.run(command, cwd=ROOT / "web", check=True, stdout=subprocess.DEVNULL)
    (archive,) = packed.iterdir()
    with tarfile.open(archive) as file:
        file.extractall(packed, filter="data")
    web_page.copy_module(folder, ROOT)
    shutil.rmtree(folder / "deploy-rnn-web")
    (packed / "package").rename(folder / "deploy-rnn-web")
    shutil.copy(Path(__file__).with_name("page.html"), folder / "index.html")
    return folder


class Page:
    """The page of the tests in a browser."""

    def __init__(self, browser: Browser, address: str) -> None:
        self._browser = browser
        browser.open(address)
        browser.until("window.isReady")

    def ask(self, expression: str) -> Any:
        """The outputs that an expression of JavaScript comes to, or its error."""
        self._browser.value(f"void ask(async () => {expression})")
        self._browser.until("window.answer !== undefined")
        answer = json.loads(self._browser.value("window.answer"))
        if "error" in answer:
            return answer["error"]
        outputs = answer["outputs"]
        is_list = bool(outputs) and not isinstance(outputs[0][0], str)
        return [of_json(item) for item in outputs] if is_list else of_json(outputs)

    def load(self, name: str) -> None:
        assert self.ask(f"void (bundles.{name} = await loadBundle('{name}/'))") == {}

    def run(self, name: str, inputs: Arrays | Sequence[Arrays]) -> Any:
        return self.ask(f"bundles.{name}.run({as_javascript(inputs)})")


def of_json(outputs: list[Any]) -> dict[str, np.ndarray]:
    return {
        name: np.array(tensor["data"], tensor["dtype"]).reshape(tensor["shape"])
        for name, tensor in outputs
    }


def as_javascript(inputs: Arrays | Sequence[Arrays]) -> str:
    if isinstance(inputs, Mapping):
        return json.dumps({name: array.tolist() for name, array in inputs.items()})
    return f"[{', '.join(map(as_javascript, inputs))}]"


@pytest.fixture(scope="module")
def page(site: Path, browser: Browser) -> Iterator[Page]:
    served = StaticSite(site)
    yield Page(browser, served.address)
    served.close()


def check(outputs: Arrays, expected: Arrays) -> None:
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-5)


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(20, size=shape)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_answers_are_those_of_the_engine(name: str, site: Path, page: Page) -> None:
    """A bucket of 6 steps, and other numbers of steps; with lengths and without."""
    page.load(name)
    engine = Engine(site / name)
    for request in (
        {"tokens": tokens(2, 6)},
        {"tokens": tokens(3, 9), "lengths": np.array([2, 9, 5])},
        {"tokens": tokens(1, 1)},
    ):
        check(page.run(name, request), engine.run(request))
    # Rows of unlike length in one run, each cut back to its own.
    requests = [{"tokens": tokens(1, steps)} for steps in (3, 8, 1)]
    for outputs, request in zip(page.run(name, requests), requests, strict=True):
        check(outputs, engine.run(request))


def test_a_precision_is_asked_for(site: Path, page: Page) -> None:
    assert page.ask("loadBundle('precisions/')").endswith(
        "/precisions/ has graphs in float32 and int8 and float16; `precision` must say which."
    )
    request = {"tokens": tokens(2, 5), "lengths": np.array([5, 2])}
    for precision in ("float32", "int8", "float16"):
        loaded = f"await loadBundle('precisions', {{ precision: '{precision}' }})"
        assert page.ask(f"void (bundles.precise = {loaded})") == {}
        expected = Engine(site / "precisions", precision=precision).run(request)
        check(page.run("precise", request), expected)


@pytest.mark.parametrize("form", ["native", "scan", "unrolled-6"])
def test_every_form(form: str, site: Path, page: Page) -> None:
    for layer in ("RNN", "GRU", "LSTM"):
        name = f"{layer}_{form.replace('-', '_')}"
        keep_graphs(site / layer, site / name, f"{form}.onnx")
        page.load(name)
        request = {"tokens": tokens(3, 6), "lengths": np.array([2, 6, 5])}
        check(page.run(name, request), Engine(site / name).run(request))


@pytest.mark.parametrize("source", ["README.md", "docs/browser.md"])
def test_the_code_of_the_pages_runs(source: str, site: Path, page: Page) -> None:
    """The block that loads a tagger, in a page that has imported the module."""
    if not (site / "tagger").exists():
        shutil.copytree(site / "LSTM", site / "tagger")
    text = (ROOT / source).read_text(encoding="utf-8")
    block = re.search(r"```js\nimport [^\n]*deploy-rnn-web[^\n]*\n(.*?)```", text, re.DOTALL)
    assert block is not None
    outputs = page.ask(f"{{ {block[1]}\n return {{ output }}; }}")
    check(outputs, Engine(site / "LSTM").run({"tokens": np.array([[12, 7, 256]])}))


def test_rows_are_padded_to_a_bucket(site: Path, page: Page) -> None:
    page.load("buckets")
    engine = Engine(site / "buckets")
    for request in (
        {"tokens": tokens(2, 4), "lengths": np.array([3, 4])},
        {"tokens": tokens(1, 6)},
    ):
        check(page.run("buckets", request), engine.run(request))
    with pytest.raises(InputError, match="take at most 6"):
        engine.run({"tokens": tokens(1, 7)})
    assert page.run("buckets", {"tokens": tokens(1, 7)}) == (
        "InputError: the inputs have 7 steps; the bundle's graphs take at most 6: export another bucket."
    )


def test_rows_that_look_at_each_other_run_apart(site: Path, page: Page) -> None:
    page.load("average")
    engine = Engine(site / "average")
    values = np.random.default_rng(1).normal(size=(2, 5, 3)).astype(np.float32)
    check(page.run("average", {"x": values}), engine.run({"x": values}))
    requests = [{"x": values[:1]}, {"x": values[1:]}]
    for outputs, request in zip(page.run("average", requests), requests, strict=True):
        check(outputs, engine.run(request))


def test_chunks_of_a_stream_are_the_whole(site: Path, page: Page) -> None:
    """Time-first in the graph; two rows, two layers, chunks of 3, 1 and 4 steps; then a chunk with a mistake."""
    page.load("stream")
    values = np.random.default_rng(2).normal(size=(2, 8, 3)).astype(np.float32)
    whole = Engine(site / "stream").run({"input": values})
    check(page.run("stream", {"input": values}), whole)
    assert page.ask("void (streams.a = bundles.stream.stream())") == {}
    for start, end in ((0, 3), (3, 4), (4, 8)):
        chunk = as_javascript({"input": values[:, start:end]})
        check(page.ask(f"streams.a.run({chunk})"), {"output": whole["output"][:, start:end]})
    states = page.ask("streams.a.states")
    check(states, {"h0": whole["h_n"], "c0": whole["c_n"]})
    wrong = page.ask(f"streams.a.run({as_javascript({'input': values[:1]})})")
    assert wrong == "InputError: the stream has 2 rows, this chunk has 1; a stream keeps its rows."
    check(page.ask("streams.a.states"), states)


def test_what_cannot_be_run_says_why(site: Path, page: Page) -> None:
    page.load("GRU")
    assert page.run("GRU", {"tokens": np.array([[3, -1]])}) == (
        "InputError: `tokens` has -1 at [0, 1]; must be from 0 to 299: it is an index into a table."
    )
    assert page.run("GRU", {"tokens": tokens(1, 2), "lengths": np.array([3])}) == (
        "InputError: `lengths` has 3 in row 0; a row has 1 to 2 steps."
    )
    assert page.ask("bundles.GRU.stream()") == (
        "InputError: GRU has no states to carry from chunk to chunk; export it with streaming=True."
    )
    missing = page.ask("loadBundle('nothing/')")
    assert missing.startswith("BundleError: http://127.0.0.1")
    assert missing.endswith(
        "/nothing/manifest.json is not there (404); must be a file of a bundle, as `deploy-rnn export` writes it."
    )
    keep_graphs(site / "GRU", site / "edited", "scan.onnx")
    manifest = site / "edited" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"int64"', '"int32"', 1))
    assert page.ask("loadBundle('edited/')").endswith(
        "/edited/scan.onnx has `tokens: int64 [B, T]`, where the manifest says `tokens: int32 [B, T]`."
    )
    shutil.copytree(site / "GRU", site / "damaged")
    with (site / "damaged" / "weights.bin").open("r+b") as weights:
        weights.write(b"\1")
    damaged = page.ask("loadBundle('damaged/')")
    assert (
        "/damaged/weights.bin is not the file that was exported: its sha256 is not that of the manifest"
        in damaged
    )


def test_a_runtime_that_is_not_served_is_named(
    site: Path, browser: Browser, tmp_path: Path
) -> None:
    for name in ("deploy-rnn-web", "onnxruntime-web", "stream"):
        shutil.copytree(site / name, tmp_path / name)
    shutil.copy(site / "index.html", tmp_path)
    (tmp_path / "onnxruntime-web" / "ort-wasm-simd-threaded.wasm").unlink()
    served = StaticSite(tmp_path)
    error = Page(browser, served.address).ask("loadBundle('stream/')")
    served.close()
    assert error.startswith("RunError: onnxruntime-web cannot start: no available backend found.")
    assert "ort-wasm-simd-threaded.wasm must be served next to its ort.wasm.bundle" in error


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    web_page.write(folder, ROOT)
    return folder


COLOURED = '[...document.querySelectorAll("#coloured span")].map((span) => [span.className, span.textContent])'


def type_text(text: str) -> str:
    return f"""{{
        const source = document.getElementById("source");
        source.value = {json.dumps(text)};
        source.dispatchEvent(new Event("input"));
    }}"""


def test_the_highlighter_colours_in_the_page(pages: Path, browser: Browser) -> None:
    """Its labels are the engine's, also when there is no server any more."""
    served = StaticSite(pages)
    browser.open(served.address)
    latency = 'document.getElementById("latency").textContent'
    browser.until(latency)
    served.close()
    engine = Engine(pages / "highlight")
    long = Path(highlight.__file__).read_text(encoding="utf-8")
    for text in (browser.value('document.getElementById("source").value'), "x = 1", long):
        browser.value(type_text(text))
        browser.until(f'{latency}.startsWith("{len(text)} characters read in")')
        spans = browser.value(COLOURED)
        assert "".join(part for _, part in spans) == text
        scores = engine.run({"characters": highlight.windows(highlight.encode(text))})["output"]
        expected = [highlight_labels.LABELS[label] for label in highlight.join(scores, len(text))]
        assert [label for label, part in spans for _ in part] == expected
    fetched = browser.value('performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert fetched
    assert all(name.startswith(served.address) for name in fetched)


def test_the_stream_s_page(pages: Path, browser: Browser) -> None:
    served = StaticSite(pages)
    browser.open(f"{served.address}stream.html")
    browser.until('document.querySelector("polyline.slow").points.length >= 24')
    browser.value('document.getElementById("compare").click()')
    browser.until('document.getElementById("answer").textContent')
    answer = browser.value('document.getElementById("answer").textContent')
    assert float(answer.rpartition(" ")[2]) < 1e-5
    assert browser.value('document.getElementById("problem").textContent') == ""
    served.close()


def test_a_page_says_what_is_missing(pages: Path, browser: Browser, tmp_path: Path) -> None:
    shutil.copytree(pages, tmp_path / "pages")
    shutil.rmtree(tmp_path / "pages" / "highlight")
    served = StaticSite(tmp_path / "pages")
    browser.open(served.address)
    browser.until(
        'document.getElementById("missing").textContent.includes("manifest.json is not there (404)")'
    )
    assert not browser.value('document.getElementById("highlight").checkVisibility()')
    served.close()
