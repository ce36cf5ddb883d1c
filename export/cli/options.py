"""The options that commands share, and what becomes of them. Only click is imported here."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy_rnn.console import step
from deploy_rnn.files import target as file_target

if TYPE_CHECKING:
    from .target import Target

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[[Any], Any]


def _parse_dynamic(
    ctx: click.Context, option: click.Parameter, texts: Sequence[str]
) -> dict[str, dict[int, str]] | None:
    """Return `dynamic_shapes` from NAME:AXIS=SYMBOL, any number of times."""
    shapes: dict[str, dict[int, str]] = {}
    for text in texts:
        match = re.fullmatch(r"(\w+):(-?\d+)=([A-Za-z_]\w*)", text)
        if match is None:
            raise click.BadParameter(
                f"{text!r} is not NAME:AXIS=SYMBOL, such as input:1=B.", ctx, option
            )
        name, axis, symbol = match.groups()
        shapes.setdefault(name, {})[int(axis)] = symbol
    return shapes or None


def _parse_names(
    ctx: click.Context, option: click.Parameter, texts: Sequence[str]
) -> tuple[str, ...]:
    """Return the names in NAME,NAME, given once or several times."""
    names = [name.strip() for text in texts for name in text.split(",")]
    if not all(names):
        raise click.BadParameter(
            f"{','.join(texts)!r} is not NAME,NAME, such as x,lengths.", ctx, option
        )
    return tuple(names)


def _names_option(flag: str, *, default: str, help: str) -> Option:
    """An option of names, in order; `default`: what holds if it is not given, in words."""
    return click.option(
        flag,
        multiple=True,
        callback=_parse_names,
        metavar="NAME,NAME",
        show_default=default,
        help=help,
    )


def _check_report_path(
    ctx: click.Context, option: click.Parameter, path: Path | None
) -> Path | None:
    if path is None:
        return None
    if path.suffix not in (".html", ".json"):
        raise click.BadParameter(f"{str(path)!r} must end in .html or .json.", ctx, option)
    try:
        return file_target(path, "report.html")
    except OSError as error:
        raise click.BadParameter(str(error), ctx, option) from None


# The name of an option (the second one, if it has two) is the keyword argument that it is passed as. An option that is
# not given is not passed, so that the functions' own defaults hold.

# Keyword arguments of `export_onnx` and `export_bundle`; `forms` becomes `form` for a single file.
FORM_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--form", "forms", multiple=True, metavar="FORM",
        show_default="auto; in a bundle scan and native, as far as they fit",
        help="How the recurrence is written: auto, the fastest that fixes no axis; scan, native; or unrolled, for the "
        "example's number of steps only. May be repeated for a bundle, without auto.",
    ),
    click.option(
        "--precision", multiple=True, metavar="PRECISION", show_default="that of the model's weights",
        help="Precision in which the file computes: float32 or float64, that of the model's weights; int8, with "
        "products of eight bits in recurrent layers; or float16, with weights stored in 16 bits. May be repeated for a "
        "bundle.",
    ),
    click.option(
        "--max-error", type=float, show_default="any",
        help="With --precision int8 or float16, the largest difference from the model that rounding may cost.",
    ),
    click.option(
        "--int8-layer", "int8_layers", type=click.Choice(["linear", "embedding"]), multiple=True, show_default="none",
        help="With --precision int8, layers around the recurrent ones that are of eight bits, too. May be repeated.",
    ),
    click.option(
        "--int8-products", type=click.Choice(["all", "state"]), show_default="all",
        help="With --precision int8, which products are of eight bits: all; or state, so that inputs are multiplied in "
        "float32, which rounds less and takes longer.",
    ),
    click.option(
        "--opset", "opset_version", type=int, metavar="N", show_default="18",
        help="Version of the ONNX operators, 13 to 25.",
    ),
    click.option(
        "--ir-version", type=int, metavar="N", show_default="lowest for the opset",
        help="Version of the format of the file, for runtimes that refuse a newer one.",
    ),
    click.option(
        "--dynamic", "dynamic_shapes", multiple=True, callback=_parse_dynamic, metavar="NAME:AXIS=SYMBOL",
        show_default="batch and time; in form unrolled the batch",
        help="A dynamic axis of an argument, and its name, such as input:1=B. May be repeated; replaces the default, "
        "so that a time axis which is not named is fixed.",
    ),
    _names_option(
        "--input-names",
        default="the arguments' names; of a bare layer input, h0, c0, lengths",
        help="Names of the inputs, in order.",
    ),
    _names_option(
        "--output-names",
        default="output, or output_0 and so on; of a bare layer output, h_n, c_n",
        help="Names of the outputs, in order.",
    ),
    click.option(
        "--streaming", is_flag=True, show_default="off",
        help="Make every state an input and an output, so that a sequence can come in chunks.",
    ),
    click.option(
        "--max-nodes", type=click.IntRange(1), metavar="N", show_default="20000",
        help="Refuse the form unrolled if the file would have more nodes.",
    ),
    click.option(
        "--portable", is_flag=True, show_default="off",
        help="Write what runtimes of fewer operators take: the batch is that of the example, no shape is computed.",
    ),
    click.option(
        "--row-ends", metavar="WAY", show_default="what the runtime reads",
        help="How form native writes rows of different length: sequence_lens, an input of the operators that only "
        "onnxruntime is known to read; or held, by the gates, right in other runtimes too.",
    ),
)  # fmt: skip

# Keyword arguments of `verify`, and of both export functions.
CHECK_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--atol", type=float, show_default="1e-5 in float32, 1e-9 in float64, more where PyTorch itself rounds more",
        help="Allowed absolute difference; it or --rtol replaces the default limits.",
    ),
    click.option(
        "--rtol", type=float, show_default="0 with --atol",
        help="Allowed difference as a share of each value, added to --atol.",
    ),
    click.option(
        "--runtime", metavar="RUNTIME", show_default="onnxruntime",
        help="Where the file will run, and is checked: openvino, openvino-static, onnxruntime-web, "
        "onnxruntime-web-chromium, opencv, mnn, tract, tvm or ncnn, if that is installed. An export is checked in "
        "onnxruntime as well.",
    ),
    click.option(
        "--size", "sizes", type=int, multiple=True, metavar="N", show_default="1, 3, 7",
        help="A size to try for every dynamic axis; may be repeated.",
    ),
)  # fmt: skip

# Keyword arguments of `verify` only.
PAIRING_OPTIONS: tuple[Option, ...] = (
    _names_option(
        "--input-names",
        default="by name, else by order",
        help="The file's name for each tensor that the model takes, in order; for a file of another maker.",
    ),
    _names_option(
        "--output-names",
        default="by name, else by order",
        help="The file's name for each tensor that the model returns, in order.",
    ),
)  # fmt: skip

# Keyword arguments of `export_bundle` only.
BUNDLE_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--bucket", "buckets", type=click.IntRange(1), multiple=True, metavar="N", show_default="none",
        help="A number of steps for which a bundle has an unrolled graph; may be repeated.",
    ),
    click.option(
        "--name", show_default="that of the folder, or of TARGET", help="The model's name in a bundle, or in Triton."
    ),
)  # fmt: skip

# Arguments of `write_triton_model`.
TRITON_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--triton", "repository", type=click.Path(path_type=Path), metavar="REPOSITORY", show_default="none",
        help="Write the model to this model repository of Triton, as a new model or the next version of one. With "
        "--output the bundle is written there, too.",
    ),
    click.option(
        "--triton-backend", "backend", type=click.Choice(["python", "onnxruntime"]), show_default="python",
        help="Which of Triton's backends runs it: python with deploy-rnn in it, or onnxruntime with one graph.",
    ),
)  # fmt: skip

# Keyword arguments of `target.from_weights`.
WEIGHTS_OPTIONS: tuple[Option, ...] = (
    click.option(
        "--key", metavar="PATH", show_default="the only one",
        help="For a weights file: the layer in a checkpoint of more, such as model.encoder.rnn.",
    ),
    click.option(
        "--nonlinearity", type=click.Choice(["tanh", "relu"]), show_default="tanh",
        help="For a weights file: the nonlinearity of an RNN.",
    ),
    click.option(
        "--batch-first", is_flag=True, show_default="off",
        help="For a weights file: the input is (B, T, I), not (T, B, I).",
    ),
    click.option(
        "--steps", type=click.IntRange(1), show_default="32", help="For a weights file: T of the example."
    ),
    click.option(
        "--batch", type=click.IntRange(1), show_default="2", help="For a weights file: B of the example."
    ),
    click.option(
        "--lengths", is_flag=True, show_default="off",
        help="For a weights file: the layer also takes the lengths of the rows.",
    ),
)  # fmt: skip
WEIGHTS = ("key", "nonlinearity", "batch_first", "steps", "batch", "lengths")

PROVIDER_OPTION = click.option(
    "--require-provider", metavar="PROVIDER", show_default="none",
    help="An onnxruntime execution provider that must run every node, such as CUDAExecutionProvider.",
)  # fmt: skip
REPORT_OPTION = click.option(
    "--report", "report_to", type=click.Path(path_type=Path), callback=_check_report_path, metavar="PATH",
    show_default="none",
    help="Also write the report of the verification, passed or failed, as a page (.html) or as JSON (.json).",
)  # fmt: skip
JSON_OPTION = click.option(
    "--json",
    "as_json",
    is_flag=True,
    show_default="off",
    help="Print the result as JSON, and nothing else.",
)


def with_options(*groups: Sequence[Option]) -> Callable[[Function], Function]:
    """Return a decorator that adds these options to a command, in this order."""

    def add(function: Function) -> Function:
        options = [option for group in groups for option in group]
        for option in reversed(options):
            function = option(function)
        return function

    return add


def without_unset(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the functions have their own defaults for the others."""
    return {name: value for name, value in options.items() if not _is_unset(value)}


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value == ()  # not 0, as in `--atol 0`


def pop(options: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Take those of `names` that were given out of `options`."""
    return {name: options.pop(name) for name in names if name in options}


def load(target: str, weights_options: dict[str, Any]) -> "Target":
    with step(f"loading {target}"):
        from .target import load_target

        return load_target(target, **weights_options)
