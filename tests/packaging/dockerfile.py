"""Reads a Dockerfile, and does what it says without Docker: in folders that stand for the roots of its stages.

The last stage is as in the image: files of Debian's packages, and what is copied there, so that it runs in a `chroot`.
A stage before it only makes what is copied: its commands run with the programs of this machine.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from tests.packaging import debian

DISTROLESS = "gcr.io/distroless/python3-debian12:nonroot"

NOT_ROOTS = ("/usr", "/bin", "/etc", "/proc", "/dev", "/tmp")
"""Of these, a path in a command is that of the machine."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: `RUN`, and what follows it."""

    name: str
    text: str

    def words(self) -> list[str]:
        """Of an instruction in the form of a list."""
        words: list[str] = json.loads(self.text)
        return words


@dataclass
class Stage:
    """What the instructions of a stage have come to.

    Attributes:
        root: the folder that stands for its root.
        base: the image that it begins with.
        environment: of ENV and ARG.
        settings: the last text of each other instruction, by its name.
        folder: that of WORKDIR.
    """

    root: Path
    base: str
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Instruction] = field(default_factory=dict)
    folder: str = "/"

    def path(self, path: str) -> Path:
        """Where a path of the image is on this machine."""
        inside = Path(self.folder) / path
        return self.root / inside.relative_to("/")


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    instructions = []
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            instructions.append(Instruction(name, rest.strip()))
    return instructions


class Build:
    """Builds each stage of a Dockerfile.

    Args:
        instructions: of the Dockerfile.
        context: the folder that COPY copies from.
        roots: gets a folder for each stage; that of the last one is `final.root`.
    """

    def __init__(self, instructions: list[Instruction], context: Path, roots: Path) -> None:
        self._context = context
        self._roots = roots
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, Stage] = {}
        self.final = Stage(roots, "")
        for instruction in instructions:
            getattr(self, f"_{instruction.name.lower()}", self._keep)(instruction)

    def _from(self, instruction: Instruction) -> None:
        image, _, name = instruction.text.partition(" AS ")
        base = Template(image).substitute(self._arguments)
        self.final = Stage(self._roots / f"stage{len(self._stages)}", base)
        self.final.root.mkdir()
        self._stages[name or str(len(self._stages))] = self.final
        if base == DISTROLESS:
            debian.unpack(self.final.root)
        else:
            self._add_pip()

    def _add_pip(self) -> None:
        """Put one first on the path that installs for the Python of the base image."""
        version = self.final.base.removeprefix("python:").removesuffix("-slim")
        python: str | None = sys.executable
        if version != ".".join(map(str, sys.version_info[:2])):
            python = shutil.which(f"python{version}")
        if python is None:
            raise FileNotFoundError(
                f"python{version} is not on the path; install it, as the image has it."
            )
        programs = self.final.root / "programs"
        programs.mkdir()
        pip = programs / "pip"
        pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip --python "{python}" "$@"\n')
        pip.chmod(0o755)
        self.final.environment["PATH"] = f"{programs}:{os.environ['PATH']}"

    def _arg(self, instruction: Instruction) -> None:
        name, _, value = instruction.text.partition("=")
        if self._stages:
            self.final.environment[name] = value
        else:
            self._arguments[name] = value

    def _env(self, instruction: Instruction) -> None:
        name, _, value = instruction.text.partition("=")
        self.final.environment[name] = value

    def _workdir(self, instruction: Instruction) -> None:
        self.final.folder = instruction.text
        self.final.path("").mkdir(parents=True, exist_ok=True)

    def _copy(self, instruction: Instruction) -> None:
        source_root = self._context
        words = instruction.text.split()
        if words[0].startswith("--from="):
            source_root = self._stages[words.pop(0).removeprefix("--from=")].root
        *sources, target = words
        for source in sources:
            path = source_root / source.lstrip("/")
            destination = self.final.path(target)
            if path.is_dir():
                shutil.copytree(path, destination, symlinks=True)
            else:
                shutil.copy(path, destination)

    def _run(self, instruction: Instruction) -> None:
        assert self.final.base != DISTROLESS, "that image has no shell."
        # Absolute paths of the stage, unless they are within another path or an address.
        pattern = r"(?<![\w./:])/[a-z]+(?=[/\s\"'}]|$)"
        command = re.sub(pattern, self._path_here, instruction.text)
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.final.path(""),
            env=os.environ | self.final.environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def _path_here(self, match: re.Match[str]) -> str:
        path = match[0]
        return path if path in NOT_ROOTS else f"{self.final.root}{path}"

    def _keep(self, instruction: Instruction) -> None:
        self.final.settings[instruction.name] = instruction


def inside(stage: Stage, command: list[str]) -> dict[str, Any]:
    """Arguments of `subprocess.run` that run a command as a container of the stage would: as its user, in its root."""
    user = stage.settings["USER"].text
    return {
        "args": ["chroot", f"--userspec={user}", "--groups=", str(stage.root), *command],
        "env": {"PATH": debian.PROGRAMS, **stage.environment},
        "text": True,
    }


def server_command(stage: Stage) -> list[str]:
    """What a container runs."""
    return stage.settings["ENTRYPOINT"].words() + stage.settings["CMD"].words()


def health_command(stage: Stage) -> list[str]:
    text = stage.settings["HEALTHCHECK"].text
    words: Any = json.loads(text[text.index("CMD ") + 4 :])
    return list(words)
