"""Take the pictures of the server's pages in the README from a run: `python -m tools.page_pictures`, from the root.

It exports the highlighter and a layer that streams, serves both with `deploy-rnn serve`, sends them requests for a few
seconds, tries a model in the page as a user would, and writes docs/page.png and docs/highlighter.png. This takes a
Chromium.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy_rnn.examples.highlight import model as highlight
from deploy_rnn.examples.highlight.screenshot import go_first
from deploy_rnn.export import export_bundle
from deploy_rnn.files import replace_file
from tools.browser import Browser

DOCS = Path("docs")
PAGE = Path("examples/highlight/page")

SECONDS = 6.0
CLIENTS = 3
PAUSE = 0.05
"""How long clients ask before the picture is taken, how many there are, and their mean pause in seconds."""

TRIAL = 'document.querySelector("article:nth-child(2) details")'


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        bundles = Path(temporary) / "bundles"
        bundles.mkdir()
        write_bundles(bundles)
        page = Path(temporary) / "highlighter"
        shutil.copytree(PAGE, page)
        # What others want of the cores should not be in the figures.
        go_first()
        with serve(bundles, page) as address:
            take_pictures(address, Path(temporary) / "profile")


def take_pictures(address: str, profile: Path) -> None:
    browser = Browser(profile)
    try:
        with requests(address):
            picture_models(browser, address)
        picture_highlighter(browser, address)
    finally:
        browser.close()


def write_bundles(folder: Path) -> None:
    torch.manual_seed(0)
    characters = torch.randint(len(highlight.ALPHABET), (2, highlight.WINDOW))
    export_bundle(highlight.load(), characters, folder / "highlight", forms=["native"], sizes=(2,))
    layer = nn.GRU(40, 64, batch_first=True)
    example = torch.randn(2, 20, 40)
    export_bundle(layer, example, folder / "audio", forms=["native"], streaming=True)


@contextmanager
def serve(bundles: Path, page: Path) -> Iterator[str]:
    """Serve the bundles on free ports: the address of HTTP."""
    command = [sys.executable, "-m", "deploy_rnn", "serve", str(bundles), "--page", str(page)]
    command += ["--http-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            match = re.match(r"HTTP on (\S+),", line)
            if match:
                yield match[1]
                return
        sys.exit("the server did not start.")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def requests(address: str) -> Iterator[None]:
    """Ask both models from several clients at a time, before the block and during it."""
    has_ended = threading.Event()

    def ask(client: int) -> None:
        numbers = random.Random(client)
        chunk = 0
        while not has_ended.wait(PAUSE * numbers.expovariate(1)):
            length = numbers.randint(20, 120)
            characters = [[numbers.randrange(len(highlight.ALPHABET)) for _ in range(length)]]
            infer(address, "highlight", "characters", "INT64", characters)
            sound = [[[numbers.gauss(0, 1) for _ in range(40)] for _ in range(20)]]
            stream = {"sequence_id": f"client-{client}", "sequence_start": chunk == 0}
            infer(address, "audio", "input", "FP32", sound, stream)
            chunk += 1

    with ThreadPoolExecutor(CLIENTS) as executor:
        clients = [executor.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(SECONDS)
        yield
        has_ended.set()
        for client in clients:
            client.result()


def infer(
    address: str,
    model: str,
    name: str,
    datatype: str,
    data: Any,
    parameters: dict[str, object] | None = None,
) -> None:
    shape = list(torch.tensor(data).shape)
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    body = json.dumps({"inputs": [tensor], "parameters": parameters or {}}).encode()
    with urllib.request.urlopen(f"{address}/v2/models/{model}/infer", body) as answer:
        answer.read()


def picture_models(browser: Browser, address: str) -> None:
    browser.open(f"{address}/")
    browser.until('document.querySelectorAll("dd").length > 9')
    rates = '[...document.querySelectorAll("dl div:nth-child(2) dd")]'
    browser.until(f'{rates}.every((rate) => rate.textContent !== "0.0")')
    browser.value(f"{TRIAL}.open = true")
    browser.until(f'{TRIAL}.querySelector(".run") !== null')
    for _ in range(5):  # the first is slower: it opens a connection
        browser.value(f'{TRIAL}.querySelector(".latency").textContent = ""')
        browser.value(f'{TRIAL}.querySelector(".run").click()')
        browser.until(f'{TRIAL}.querySelector(".latency").textContent')
    write("page.png", browser.screenshot(1000, 1130))


def picture_highlighter(browser: Browser, address: str) -> None:
    browser.open(f"{address}/pages/highlighter/")
    browser.until('document.getElementById("latency").textContent')
    write("highlighter.png", browser.screenshot(1000, 570))


def write(name: str, picture: bytes) -> None:
    replace_file(DOCS / name, lambda path: path.write_bytes(picture))


if __name__ == "__main__":
    main()
