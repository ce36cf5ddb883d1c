"""What a file of ours says about itself, in its metadata: what a graph's inputs and outputs do not show."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PREFIX = "deploy_rnn."


@dataclass(frozen=True)
class FileMetadata:
    """Metadata of a file.

    Attributes:
        form: how its recurrent layers are written; None if deploy-rnn did not write them.
        lengths: inputs that are the lengths of the rows -> the axis, or the number of steps, that limits them.
        states: inputs that carry a state from chunk to chunk -> the outputs that give it; of a streaming file.
        time: inputs -> which of their axes are the steps; of a streaming file.
    """

    form: str | None = None
    lengths: Mapping[str, int | str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    time: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "FileMetadata":
        """From the metadata of any file."""

        def noted(name: str) -> Any:
            return json.loads(metadata.get(PREFIX + name, "{}"))

        return cls(metadata.get(PREFIX + "form"), noted("lengths"), noted("states"), noted("time"))

    def metadata(self) -> dict[str, str]:
        """What is to be written."""
        return {
            PREFIX + name: value if isinstance(value, str) else json.dumps(value)
            for name, value in asdict(self).items()
            if value
        }
