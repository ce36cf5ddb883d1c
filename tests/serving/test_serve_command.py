"""`deploy-rnn serve` where it does not get as far as serving."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main

ANY_PORTS = ("--http-port", "0", "--grpc-port", "0")


def test_help_has_an_example() -> None:
    found = CliRunner().invoke(main, ["serve", "--help"])
    assert found.exit_code == 0
    assert "deploy-rnn serve bundles/tagger --http-port 8000 --grpc-port 8001" in found.output
    assert "Triton's clients" in found.output


def test_it_listens_to_this_machine_only_unless_told() -> None:
    options = {each.name: each.default for each in main.get_command(None, "serve").params}  # type: ignore[arg-type]
    assert (options["host"], options["http_port"], options["grpc_port"]) == ("127.0.0.1", 8000, 8001)


@pytest.mark.parametrize("path", ["nothing", "empty"])
def test_no_bundle(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    found = CliRunner().invoke(main, ["serve", str(tmp_path / path), *ANY_PORTS])
    assert found.exit_code == 2
    assert "it must be a bundle, an .onnx file, or a folder of bundles." in found.output


def test_a_bundle_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{}", encoding="utf-8")
    found = CliRunner().invoke(main, ["serve", str(tmp_path), *ANY_PORTS])
    assert found.exit_code == 2
    assert "is not a manifest: `version` is missing" in found.output


def test_a_provider_that_is_missing(real_bundles: Path) -> None:
    found = CliRunner().invoke(main, ["serve", str(real_bundles), *ANY_PORTS, "--provider", "Nonsense"])
    assert found.exit_code == 1
    assert "has no Nonsense" in found.output
