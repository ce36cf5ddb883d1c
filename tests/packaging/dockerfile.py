"""Reads a Dockerfile, and does what it says without Docker: in a folder that stands for the root of the image."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
        environment: of ENV and ARG.
        settings: the last text of each other instruction, by its name.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Instruction] = field(default_factory=dict)
    folder: str = "/"

    def path(self, path: str) -> Path:
        """Where a path of the image is on this machine."""
        inside = Path(self.folder) / path
        return self.root / inside.relative_to("/")

    def here(self, text: str) -> str:
        """A command whose absolute paths in the image are those on this machine."""
        # Not a path in a path, nor in an address.
        return re.sub(r"(?<![\w./:])/[a-z]+(?=[/\s\"'}]|$)", self._path_here, text)

    def _path_here(self, match: re.Match[str]) -> str:
        path = match[0]
        return path if path in NOT_ROOTS else f"{self.root}{path}"


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
        roots: gets a folder for each stage; that of the last one is `root`.
        python: stands for that of the base image, as `python`, and `pip` beside it.
    """

    def __init__(
        self, instructions: list[Instruction], context: Path, roots: Path, python: str
    ) -> None:
        self._context = context
        self._roots = roots
        self._python = python
        # As in an image, every stage is built at the same place: scripts name the interpreter by its path.
        self._root = roots / "root"
        self._stages: dict[str, Stage] = {}
        self.final = Stage(roots)
        for instruction in instructions:
            getattr(self, f"_{instruction.name.lower()}", self._keep)(instruction)

    def _from(self, instruction: Instruction) -> None:
        _, _, name = instruction.text.partition(" AS ")
        if self._stages:
            self.final.root = self._root.rename(self._roots / f"stage{len(self._stages)}")
        self.final = Stage(self._root, {"PATH": os.environ["PATH"]})
        self._root.mkdir()
        self._stages[name or str(len(self._stages))] = self.final
        self._add_programs()

    def _add_programs(self) -> None:
        """Those of the base image."""
        programs = self.final.root / "usr" / "local" / "bin"
        programs.mkdir(parents=True)
        (programs / "python").symlink_to(self._python)
        pip = programs / "pip"
        pip.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pip "$@"\n')
        pip.chmod(0o755)
        self.final.environment["PATH"] = f"{programs}:{self.final.environment['PATH']}"

    def _arg(self, instruction: Instruction) -> None:
        name, _, value = instruction.text.partition("=")
        if self._stages:
            self.final.environment[name] = value

    def _env(self, instruction: Instruction) -> None:
        name, _, value = instruction.text.partition("=")
        path = self.final.environment["PATH"]
        self.final.environment[name] = self.final.here(value).replace("$PATH", path)

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
        command = ["/bin/sh", "-c", self.final.here(instruction.text)]
        environment = os.environ | self.final.environment
        result = subprocess.run(
            command, cwd=self.final.path(""), env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr

    def _keep(self, instruction: Instruction) -> None:
        self.final.settings[instruction.name] = instruction


def command_of(stage: Stage, *more: str) -> list[str]:
    """What a container runs, on this machine."""
    words = stage.settings["ENTRYPOINT"].words() + stage.settings["CMD"].words() + list(more)
    return [stage.here(word) for word in words]


def health_command(stage: Stage) -> list[str]:
    text = stage.settings["HEALTHCHECK"].text
    words: Any = json.loads(text[text.index("CMD ") + 4 :])
    return list(words)
