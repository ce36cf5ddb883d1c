"""`deploy-rnn nginx`: the files that it writes. test_nginx.py has a real nginx read them."""

import configparser
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy_rnn.cli import main

BUNDLE = Path(__file__)  # all that the command wants of it is that it is there


def write(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["nginx", str(BUNDLE), "-o", str(folder), *arguments])


def server_program(folder: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read(folder / "supervisord.conf")
    return parser["program:server"]


def test_every_process_has_its_ports_and_options(tmp_path: Path) -> None:
    options = ("--processes", "3", "--first-port", "8200", "--", "--max-rows", "16")
    result = write(tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "run" / "nginx.conf").read_text(encoding="utf-8")
    ports = re.findall(r"server 127.0.0.1:(\d+) max_fails=0", text)
    assert ports == ["8200", "8201", "8202", "18200", "18201", "18202"]
    program = server_program(tmp_path / "run")
    assert (program["numprocs"], program["numprocs_start"]) == ("3", "8200")
    assert (
        "--max-rows 16 --http-port %(process_num)d --grpc-port 1%(process_num)d"
        in program["command"]
    )
    assert "--stream-header x-session-id" in program["command"]
    assert program["directory"] == str(Path.cwd())
    assert "@" not in re.sub(r"@(stream|too_large|no_process\w*)\b", "", text)


def test_nginx_waits_longer_than_the_servers(tmp_path: Path) -> None:
    options = ("--request-seconds", "7", "--stream-idle", "500", "--max-bytes", "1000")
    assert write(tmp_path / "run", "--", *options).exit_code == 0
    text = (tmp_path / "run" / "nginx.conf").read_text(encoding="utf-8")
    assert "proxy_read_timeout 12s;" in text
    assert "grpc_read_timeout 505s;" in text
    assert "client_max_body_size 1000;" in text


def test_the_cores_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert write(tmp_path / "run", "--processes", "3").exit_code == 0
    assert "--threads 2 " in server_program(tmp_path / "run")["command"]
    assert write(tmp_path / "run", "--", "--threads", "5").exit_code == 0
    program = server_program(tmp_path / "run")
    assert program["numprocs"] == "8"
    assert "--threads 5 " in program["command"]
    assert "--threads 1 " not in program["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--", "--http-port", "1"], "`--http-port` of the processes is chosen by this command"),
        (["--", "--stream-header", "x"], "`--stream-header` of the processes is chosen by"),
        (["--", "--token", "secret"], "`--token` would stand in a file; give `--token-file`"),
        (["--", "--max-rows", "0"], "Invalid value for '--max-rows'"),
        (["--", "--nonsense"], "No such option"),
        (["--host", "0.0.0.0"], "give the name by which clients ask, as `-- --allowed-host NAME`"),
        (
            ["--http-port", "8101", "--processes", "2"],
            "`--http-port` (=8101) must be a port that no",
        ),
        (["--grpc-port", "18100"], "`--grpc-port` (=18100) must be a port that no"),
        (["--grpc-port", "8000"], "`--http-port` and `--grpc-port` must differ"),
        (["--first-port", "9999", "--processes", "2"], "must be at most 9998"),
    ],
)
def test_what_cannot_be_written(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = write(tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_a_host_that_clients_may_ask(tmp_path: Path) -> None:
    arguments = ("--host", "::", "--", "--allowed-host", "models.example.com")
    assert write(tmp_path / "run", *arguments).exit_code == 0
    text = (tmp_path / "run" / "nginx.conf").read_text(encoding="utf-8")
    assert "listen [::]:8000;" in text
    assert "listen [::]:8001 http2;" in text


def test_no_bundle(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in ("nowhere", str(empty)):
        result = CliRunner().invoke(main, ["nginx", path, "-o", str(tmp_path / "run")])
        assert result.exit_code == 2
        assert f"there is no bundle at {path!r}" in result.output
    assert not (tmp_path / "run").exists()
