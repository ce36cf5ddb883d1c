"""The metadata that deploy-rnn writes into an ONNX file: what its inputs and outputs do not show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from deploy_rnn.json_fields import JsonField
from deploy_rnn.tensor_spec import (
    IndexRange,
    IndexRanges,
    Ranges,
    read_index_ranges,
    read_ranges,
)

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
        index_ranges: inputs that are indices into a table, as of an embedding -> what they may be. Files of older
            releases have `table_rows` instead, from which they are read: the rows of tables, whose indices begin at 0.
        row_ends: how ONNX's own operators are told where rows end: "held", or "sequence_lens" of lengths that the model
            computes. None for `sequence_lens` of an input, and where there are none.
        precision: "int8" if recurrent layers multiply numbers of eight bits, "float16" if weights are stored in 16
            bits; None for that of the weights.
        int8_layers: in "int8", which layers are of eight bits besides the recurrent ones: "linear", "embedding".
        int8_products: in "int8", "state" if the recurrent layers multiply their inputs in float32; None for "all".
    """

    form: str | None = None
    lengths: Mapping[str, int | str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)
    time: Mapping[str, int] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    index_ranges: IndexRanges = field(default_factory=dict)
    row_ends: str | None = None
    precision: str | None = None
    int8_layers: Sequence[str] = ()
    int8_products: str | None = None

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> "FileMetadata":
        """From the metadata properties of any file.

        Raises:
            ValueError: a property of deploy-rnn that is not the JSON object that deploy-rnn writes.
        """

        def read(name: str) -> JsonField:
            return JsonField.parse(properties.get(PREFIX + name, "{}").encode(), name)

        lengths = read("lengths").entries()
        states = read("states").entries()
        time = read("time").entries()
        return cls(
            properties.get(PREFIX + "form"),
            {name: limit.name_or_number(least=1) for name, limit in lengths.items()},
            {name: output.text() for name, output in states.items()},
            {name: axis.whole_number(0) for name, axis in time.items()},
            read_ranges(read("ranges")),
            _index_ranges(read("table_rows")) | read_index_ranges(read("index_ranges")),
            properties.get(PREFIX + "row_ends"),
            properties.get(PREFIX + "precision"),
            tuple(properties.get(PREFIX + "int8_layers", "").split()),
            properties.get(PREFIX + "int8_products"),
        )

    @property
    def reads_sequence_lens(self) -> bool:
        """Whether ONNX's own operators in it are given lengths by `sequence_lens`, which not every provider reads."""
        return reads_sequence_lens(self.form, self.row_ends, self.lengths)

    def to_properties(self) -> dict[str, str]:
        """The metadata properties to write; empty entries are left out."""
        properties = {}
        for name, value in asdict(self).items():
            if isinstance(value, tuple):
                value = " ".join(value)
            if value:
                properties[PREFIX + name] = value if isinstance(value, str) else json.dumps(value)
        return properties


def _index_ranges(table_rows: JsonField) -> dict[str, IndexRange]:
    """Those that a file of an older release means."""
    return {
        name: IndexRange(0, rows.whole_number(1) - 1) for name, rows in table_rows.entries().items()
    }


def reads_sequence_lens(
    form: str | None, row_ends: str | None, lengths: Mapping[str, int | str]
) -> bool:
    """Whether a file of deploy-rnn, or a graph of a bundle, gives lengths to ONNX's operators by `sequence_lens`."""
    if form != "native":
        return False
    return row_ends == "sequence_lens" or (row_ends is None and bool(lengths))
