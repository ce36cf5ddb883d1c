"""The metadata that deploy-rnn writes into an ONNX file: what its inputs and outputs do not show."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deploy_rnn.tensor_spec import Ranges, read_ranges

PREFIX = "deploy_rnn."


@dataclass(frozen=True)
class FileMetadata:
    """What deploy-rnn notes about a file.

    Attributes:
        form: how its recurrent layers are written; None if deploy-rnn did not write them.
        lengths: inputs that hold the lengths of the rows -> the axis, or the number of steps, that limits them.
        states: of a streaming file, inputs that carry a state from chunk to chunk -> the outputs that return it.
        time: of a streaming file, inputs -> their time axis.
        ranges: dynamic axes that may not have every size -> the sizes that they may have.
    """

    form: str | None = None
    lengths: Mapping[str, int | str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    time: Mapping[str, int] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> "FileMetadata":
        """From the metadata properties of any file.

        Raises:
            ValueError, TypeError: a property of deploy-rnn that is not a JSON object, or a range that is not a pair.
        """

        def read(name: str) -> dict[str, Any]:
            return dict(json.loads(properties.get(PREFIX + name, "{}")))

        return cls(
            properties.get(PREFIX + "form"),
            read("lengths"),
            read("states"),
            read("time"),
            read_ranges(read("ranges")),
        )

    def to_properties(self) -> dict[str, str]:
        """The metadata properties to write; empty entries are left out."""
        properties = {}
        for name, value in asdict(self).items():
            if value:
                properties[PREFIX + name] = value if isinstance(value, str) else json.dumps(value)
        return properties
