"""Digests of the input and of the model: what a score that goes on must have in common with the one before."""

import hashlib
from pathlib import Path

from deploy_rnn.bundle_files import read_manifest_bytes

from ..engine.reading import read_model


def file_digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(path: str) -> str:
    """The sha256 of a bundle's manifest, which has those of its files; or of an .onnx file and of its weights."""
    if Path(path).is_dir():
        return hashlib.sha256(read_manifest_bytes(Path(path))).hexdigest()
    model = read_model(Path(path))
    digest = hashlib.sha256(model.graph)
    for name in sorted(model.files):
        digest.update(model.files[name].data)
    return digest.hexdigest()
