"""The highlighter, and a stream, as pages that need no server of ours: `make web` makes and serves them.

`python -m deploy_rnn.examples.highlight.web_page build/web`, from the root, after `npm install` in web/.
"""

import shutil
import sys
from pathlib import Path

import torch
from torch import nn

from deploy_rnn.bundle import MANIFEST
from deploy_rnn.export import export_bundle

from . import model

PAGES = Path(__file__).with_name("web")
SERVED_PAGE = Path(__file__).with_name("page")
SHARED = ("field.js", "highlight.js", "highlight.css")
"""Files of the served page that this one has, too."""

RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of onnxruntime-web; the second is fetched by the first, from the same folder."""

FORGETTING = (0.5, 0.9, 0.98)
"""How much of its state each unit of the smoother keeps in a step."""


def write(folder: Path, root: Path) -> None:
    """Write both pages, with all that they need. A bundle that is there already is kept.

    Args:
        folder: is made if it is missing.
        root: of the checkout, with onnxruntime-web in web/node_modules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "highlight" / MANIFEST).exists():
        export_highlighter(folder / "highlight")
    if not (folder / "smoother" / MANIFEST).exists():
        export_smoother(folder / "smoother")
    copy_module(folder, root)
    shutil.copytree(PAGES, folder, dirs_exist_ok=True)
    shutil.copy(root / "serving" / "rest" / "page" / "page.css", folder)
    for name in SHARED:
        shutil.copy(SERVED_PAGE / name, folder)


def copy_module(folder: Path, root: Path) -> None:
    """Copy the module and onnxruntime-web to where the import map of a page in this folder has them."""
    web = root / "web"
    shutil.copytree(web / "src", folder / "deploy-rnn-web" / "src", dirs_exist_ok=True)
    (folder / "onnxruntime-web").mkdir(exist_ok=True)
    for name in RUNTIME:
        shutil.copy(
            web / "node_modules" / "onnxruntime-web" / "dist" / name, folder / "onnxruntime-web"
        )


def export_highlighter(folder: Path) -> None:
    """The trained model, for windows of any number of characters."""
    characters = torch.randint(len(model.ALPHABET), (2, model.WINDOW))
    export_bundle(model.load(), characters, folder, forms=["native"], sizes=(2,))


def export_smoother(folder: Path) -> None:
    """A layer that smooths a signal from 0 to 1, at three speeds; its weights are set by hand."""
    layer = nn.RNN(1, len(FORGETTING), nonlinearity="relu", bias=False, batch_first=True)
    kept = torch.tensor(FORGETTING)
    weights = {"weight_ih_l0": 1 - kept[:, None], "weight_hh_l0": torch.diag(kept)}
    layer.load_state_dict(weights)
    export_bundle(layer.eval(), torch.rand(1, 4, 1), folder, forms=["native"], streaming=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path.cwd())
