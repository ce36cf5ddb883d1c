"""The two files: nginx.conf and supervisord.conf, from the templates beside this module."""

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

HTTP_CONF = "nginx.conf"
PROCESSES_CONF = "supervisord.conf"

GRPC_OFFSET = 10_000
"""supervisord can write a number into a port, but not add to it: the gRPC port of 8100 is "1" and "8100"."""

LATER_SECONDS = 5
"""How much later than a server nginx gives up, so that the server can say why."""


@dataclass(frozen=True)
class Layout:
    """What the files say.

    Attributes:
        folder: where the files are; nginx and supervisord keep theirs there, too.
        processes: how many servers run.
        first_port: the first server listens to this one for HTTP and to this one plus 10,000 for gRPC, the second to
            the next ones, and so on.
        host: the address that nginx listens on.
        http_port, grpc_port: its ports.
        serve: the command that starts a server, without its ports.
        directory: the folder that relative paths in this command start from.
        nginx: the program.
        user: as whom nginx and supervisord run; None for whoever starts them.
        header_seconds, body_seconds, answer_seconds, stream_seconds, idle_seconds, drain_seconds, max_bytes: the limits
            of the servers, as in `Settings`; `stream_seconds` is how long a streaming call may be silent.
    """

    folder: Path
    processes: int
    first_port: int
    host: str
    http_port: int
    grpc_port: int
    serve: Sequence[str]
    directory: Path
    nginx: str
    user: str | None
    header_seconds: float
    body_seconds: float
    answer_seconds: float
    stream_seconds: float
    idle_seconds: float
    drain_seconds: float
    max_bytes: int


def files(layout: Layout) -> dict[str, str]:
    """File -> its text."""
    nginx_conf = _filled_in(HTTP_CONF, _of_nginx(layout))
    digest = hashlib.sha256(nginx_conf.encode()).hexdigest()[:16]
    values = _of_supervisord(layout) | {"DIGEST": digest}
    return {HTTP_CONF: nginx_conf, PROCESSES_CONF: _filled_in(PROCESSES_CONF, values)}


def _filled_in(template: str, values: Mapping[str, object]) -> str:
    """The template with a value for each `@NAME@`; a line of an empty value goes."""
    text = resources.files(__package__).joinpath(template).read_text(encoding="utf-8")
    for name in [name for name, value in values.items() if value == ""]:
        text = text.replace(f"@{name}@\n", "")
    return re.sub(r"@([A-Z_]+)@", lambda match: str(values[match[1]]), text)


def _of_nginx(layout: Layout) -> dict[str, object]:
    ports = range(layout.first_port, layout.first_port + layout.processes)
    grpc_ports = [port + GRPC_OFFSET for port in ports]
    return {
        "PROCESSES": layout.processes,
        "LAST": layout.processes - 1,
        "USER": f"user {layout.user};\n" if layout.user else "",
        "HTTP_ANY": _servers(ports, "max_fails=1 fail_timeout=1s"),
        "GRPC_ANY": _servers(grpc_ports, "max_fails=1 fail_timeout=1s"),
        "HTTP_STREAM": _servers(ports, "max_fails=0"),
        "GRPC_STREAM": _servers(grpc_ports, "max_fails=0"),
        "METRICS": "\n".join(_metrics(number, port) for number, port in enumerate(ports)),
        "HTTP_LISTEN": _address(layout.host, layout.http_port),
        "GRPC_LISTEN": _address(layout.host, layout.grpc_port),
        "HEADER_SECONDS": _whole(layout.header_seconds),
        "BODY_SECONDS": _whole(layout.body_seconds),
        "IDLE_SECONDS": _whole(layout.idle_seconds),
        "ANSWER_SECONDS": _whole(layout.answer_seconds + LATER_SECONDS),
        "STREAM_SECONDS": _whole(layout.stream_seconds + LATER_SECONDS),
        "MAX_BYTES": layout.max_bytes,
    }


def _servers(ports: Sequence[int], parameters: str) -> str:
    return "\n".join(f"        server 127.0.0.1:{port} {parameters};" for port in ports)


def _metrics(number: int, port: int) -> str:
    return f"""\
        location = /processes/{number}/metrics {{
            proxy_pass http://127.0.0.1:{port}/metrics;
        }}"""


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _whole(seconds: float) -> int:
    return max(1, round(seconds))


def _of_supervisord(layout: Layout) -> dict[str, object]:
    ports = ["--http-port", "%(process_num)d", "--grpc-port", "1%(process_num)d"]
    words = [shlex.quote(_escaped(word)) for word in layout.serve]
    folder = _escaped(str(layout.folder))
    return {
        "FOLDER": folder,
        "USER": f"user={layout.user}" if layout.user else "",
        "DIRECTORY": _escaped(str(layout.directory)),
        "PROCESSES": layout.processes,
        "FIRST_PORT": layout.first_port,
        "SERVE": " ".join([*words, *ports]),
        "NGINX": f"{shlex.quote(_escaped(layout.nginx))} -p {shlex.quote(folder + '/')}",
        "STOP_SECONDS": _whole(layout.drain_seconds + LATER_SECONDS),
    }


def _escaped(text: str) -> str:
    """As supervisord reads it, for which a `%` begins a value to fill in."""
    return text.replace("%", "%%")
