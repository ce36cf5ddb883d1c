"""The options of `deploy-rnn serve`, and where it does not get as far as serving."""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy_rnn.cli import main
from deploy_rnn.errors import BundleError
from deploy_rnn.serving import Limits, Settings, cli, process
from deploy_rnn.serving import server as server_module
from deploy_rnn.serving.protocol.access_log import Access, AccessLog
from deploy_rnn.serving.scheduling import model

ANY_PORTS = ("--http-port", "0", "--grpc-port", "0")


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(main, ["serve", "--help"])
    assert result.exit_code == 0
    assert "deploy-rnn serve bundles/tagger --http-port 8000 --grpc-port 8001" in result.output
    assert "Triton's clients" in result.output


def test_it_listens_to_this_machine_only_by_default() -> None:
    defaults = {option.name: option.default for option in main.get_command(None, "serve").params}  # type: ignore[arg-type]
    assert (defaults["host"], defaults["http_port"], defaults["grpc_port"]) == (
        "127.0.0.1",
        8000,
        8001,
    )


VALUES = {
    "max_rows": 3, "max_queue": 4, "max_wait": 0.5, "max_waste": 0.25, "max_steps": 6, "max_streams": 7,
    "max_row_steps": 16, "max_output_bytes": 17, "max_queue_bytes": 18,
    "stream_idle": 8.5, "stream_keep": 9.5, "refuse_restart": True, "max_replaced": 18,
    "max_bytes": 10, "max_json_bytes": 9,
    "header_seconds": 11.5, "body_seconds": 12.5, "request_seconds": 13.5, "drain_seconds": 14.5,
    "unread_seconds": 7.5, "max_unread_bytes": 19, "idle_seconds": 5.5,
    "max_connections": 15, "token": "secret", "pages": ("a", "b"),
    "stream_header": "x-session-id",
    "allowed_hosts": ("models.example.com", "10.0.0.5:8000"),
}  # fmt: skip


def test_the_documentation_has_every_limit_once() -> None:
    """With its default in the table, and in the help."""
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    access = {"token", "pages", "allowed_hosts"}
    names = {field.name for field in (*fields(Limits), *fields(Settings))} - access
    options = {option.name: option for option in main.get_command(None, "serve").params}  # type: ignore[arg-type]
    for name in names:
        option = options[name]
        assert page.count(f"| `{option.opts[0]}` |") == 1, name
        assert option.show_default, name  # type: ignore[attr-defined]


def test_every_limit_and_setting_has_an_option(
    real_bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    class Recorder:
        def __init__(self, repository: Any, settings: Settings, *rest: Any) -> None:
            seen["limits"] = repository.limits
            seen["settings"] = settings
            raise ValueError("far enough.")

    monkeypatch.setattr(server_module, "Server", Recorder)
    arguments = []
    for option in main.get_command(None, "serve").params:  # type: ignore[arg-type]
        values = VALUES.get(option.name or "", ())
        for value in values if isinstance(values, tuple) else (values,):
            arguments += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    result = CliRunner().invoke(main, ["serve", str(real_bundles), *arguments])
    assert "far enough." in result.output
    expected = VALUES | {"pages": (Path("a"), Path("b"))}
    limit_names = [field.name for field in fields(Limits)]
    setting_names = [field.name for field in fields(Settings)]
    assert {*limit_names, *setting_names} == expected.keys()
    assert seen["limits"] == Limits(**{name: expected[name] for name in limit_names})  # type: ignore[arg-type]
    assert seen["settings"] == Settings(**{name: expected[name] for name in setting_names})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-bytes", "2147483648"), ("--max-json-bytes", "0"), ("--max-connections", "3000000000"),
        ("--drain-seconds", "inf"), ("--drain-seconds", "nan"), ("--idle-seconds", "1e300"), ("--stream-idle", "nan"),
        ("--max-row-steps", "0"),
    ],
)  # fmt: skip
def test_an_option_that_no_server_can_have(option: str, value: str, real_bundles: Path) -> None:
    result = CliRunner().invoke(main, ["serve", str(real_bundles), *ANY_PORTS, option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


@pytest.mark.skipif(sys.platform != "linux", reason="pipes cannot be opened anew elsewhere")
def test_what_nobody_reads_from_stderr_does_not_block() -> None:
    code = """
import os
from deploy_rnn.serving.process import let_output_be_lost
let_output_be_lost()
try:
    while os.write(2, bytes(65536)):
        pass
except BlockingIOError:
    print("lost")
"""
    command = [sys.executable, "-c", code]
    unread, stderr = os.pipe()
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60
        )
    finally:
        os.close(unread)
        os.close(stderr)
    assert result.stdout == "lost\n"


def test_it_may_open_as_many_files_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    process.allow_open_files()
    assert limits == [(4096, 4096)]


@pytest.mark.parametrize("path", ["nothing", "empty"])
def test_no_bundle(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, ["serve", str(tmp_path / path), *ANY_PORTS])
    assert result.exit_code == 2
    assert "it must be a bundle, an .onnx file, or a folder of bundles." in result.output


def test_a_bundle_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{}", encoding="utf-8")
    result = CliRunner().invoke(main, ["serve", str(tmp_path), *ANY_PORTS])
    assert result.exit_code == 2
    assert "is not a manifest: `version` is missing" in result.output


def test_a_bundle_that_is_damaged_while_another_is_loaded(
    tmp_path: Path, new_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load cannot be stopped; what it runs in must not be taken away from it, which would abort the process."""
    may_end = threading.Event()
    codes = []

    def load(path: Path, **options: Any) -> Any:
        if path.name == "bad":
            raise BundleError("it is bad.")
        may_end.wait()

    def end(code: int) -> None:
        codes.append(code)
        sys.exit(code)

    monkeypatch.setattr(model, "Model", load)
    monkeypatch.setattr(process, "end", end)
    monkeypatch.setattr(cli, "LOAD_SECONDS", 0.1)
    new_bundle(tmp_path / "bad")
    new_bundle(tmp_path / "long")
    try:
        result = CliRunner().invoke(main, ["serve", str(tmp_path), *ANY_PORTS])
    finally:
        may_end.set()
    assert (result.exit_code, codes) == (2, [2])
    assert result.output.count("it is bad.") == 1


def test_a_provider_that_is_missing(real_bundles: Path) -> None:
    result = CliRunner().invoke(
        main, ["serve", str(real_bundles), *ANY_PORTS, "--provider", "Nonsense"]
    )
    assert result.exit_code == 1
    assert "has no Nonsense" in result.output


def test_a_folder_that_is_not_a_page(real_bundles: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["serve", str(real_bundles), *ANY_PORTS, "--page", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert "is not a page: index.html is missing." in result.output


TOKENS = {
    "": "the token is empty",
    "  ": "the token is empty",
    "secret\n": "the token begins or ends with white space",
    " secret": "the token begins or ends with white space",
    "sec\tret": "the token has characters that no header can have",
    "sécret": "the token has characters that no header can have",
    "x" * 5000: "the token has 5000 characters; must have at most 4096.",
}
"""Tokens that no client could send -> what is said of them."""


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("where", ["option", "environment"])
def test_a_token_that_no_client_can_send(where: str, token: str, real_bundles: Path) -> None:
    arguments = ["--token", token] if where == "option" else []
    environment = {"DEPLOY_RNN_TOKEN": token} if where == "environment" else {}
    result = CliRunner().invoke(
        main, ["serve", str(real_bundles), *ANY_PORTS, *arguments], env=environment
    )
    assert result.exit_code == 2
    assert TOKENS[token] in result.output
    assert "sécret" not in result.output


def serve_until_stopped(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str
) -> Any:
    """The result of the command, and the settings of the server that it would have started."""
    seen = []

    class Recorder:
        def __init__(self, repository: Any, settings: Settings, *rest: Any) -> None:
            seen.append(settings)
            raise ValueError("far enough.")

    monkeypatch.setattr(server_module, "Server", Recorder)
    result = CliRunner().invoke(main, ["serve", *arguments, *ANY_PORTS], env=environment)
    return result, seen


@pytest.mark.parametrize("options", [[], ["--access-log", "json", "--log-level", "info"]])
def test_the_log_of_accesses_is_off_unless_asked_for(
    options: list[str], real_bundles: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    logs: list[AccessLog | None] = []
    levels: list[str] = []

    class Recorder:
        def __init__(
            self, repository: Any, settings: Settings, access_log: Any, *rest: Any
        ) -> None:
            logs.append(access_log)
            raise ValueError("far enough.")

    monkeypatch.setattr(server_module, "Server", Recorder)
    monkeypatch.setattr(logging, "basicConfig", lambda level, format: levels.append(level))
    CliRunner().invoke(main, ["serve", str(real_bundles), *ANY_PORTS, *options])
    assert levels == ["INFO" if options else "WARNING"]
    assert [log is not None for log in logs] == [bool(options)]
    if logs[0] is not None:
        logs[0].add(Access("http", "127.0.0.1:5000", "GET", "/", status=200))
        # Not through Python's stdout, which keeps what a pipe does not take.
        assert json.loads(capfd.readouterr().out)["path"] == "/"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_token_in_a_file(
    end: str, real_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_bytes(f"secret{end}".encode())
    _, settings = serve_until_stopped(monkeypatch, str(real_bundles), "--token-file", str(file))
    assert [each.token for each in settings] == ["secret"]


def test_a_token_file_that_cannot_be_used(
    real_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    arguments = (str(real_bundles), "--token-file", str(file))
    result, _ = serve_until_stopped(monkeypatch, *arguments)
    assert (result.exit_code, "No such file" in result.output) == (2, True)
    for content, message in (
        (b"", "is empty"),
        (b"\xff\xfe", "no header can have"),
        (b"a\nb\n", "no header"),
    ):
        file.write_bytes(content)
        result, _ = serve_until_stopped(monkeypatch, *arguments)
        assert (result.exit_code, message in result.output) == (2, True)
    file.write_text("secret", encoding="ascii")
    for more in ({"DEPLOY_RNN_TOKEN": "other"}, {"DEPLOY_RNN_TOKEN": ""}):
        result, _ = serve_until_stopped(monkeypatch, *arguments, **more)
        assert (result.exit_code, "give one." in result.output) == (2, True)


@pytest.mark.parametrize(
    "host", ["*", "", "http://models.example.com", "a b", "::1", "a:70000x", "a/b"]
)
def test_an_allowed_host_that_is_not_a_host(host: str, real_bundles: Path) -> None:
    result = CliRunner().invoke(
        main, ["serve", str(real_bundles), *ANY_PORTS, "--allowed-host", host]
    )
    assert result.exit_code == 2
    assert f"allowed host {host!r} must be a name or an address" in result.output


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("", "`--host` is empty; must be an address"),
        ("192.0.2.1", "`--host` must be an address of this machine"),
        ("no host", "`--host` must be an address of this machine"),
        ("x" * 70 + ".example", "`--host` must be an address of this machine"),
    ],
)
def test_a_host_that_is_not_this_machine(host: str, message: str, real_bundles: Path) -> None:
    result = CliRunner().invoke(main, ["serve", str(real_bundles), *ANY_PORTS, "--host", host])
    assert result.exit_code == 2
    assert message in result.output
