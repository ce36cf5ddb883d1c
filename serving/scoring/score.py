"""`score`: answer every row of a file."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from deploy_rnn.errors import InputError
from deploy_rnn.files import target
from deploy_rnn.runtime import CPU

from ..engine.providers import side_by_side
from .formats import STANDARD, answers_format, open_source
from .job import Job, Progress, RunWindows, ScoreReport
from .options import Options
from .rows import Source
from .scorer import Scorer
from .workers import on_cores

ENGINES = ("local", "ray")


def score(
    model: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    outputs: Sequence[str] | None = None,
    errors: str | Path | None = None,
    keep: Sequence[str] = (),
    rows: int = 64,
    window: int | None = None,
    waste: float = 0.1,
    finite: bool = False,
    provider: str = CPU,
    precision: str | None = None,
    processes: int | None = None,
    engine: str = "local",
    restart: bool = False,
    input_format: str | None = None,
    output_format: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ScoreReport:
    """Answer every row of a file, on all cores, and write the answers in the order of the rows.

    A row is one sequence: each input without the batch axis, (T, ...) or a number, as the manifest of the bundle names
    them. Lengths and states may be left out. An .onnx file does not say which axis is the batch: a row then has all
    axes that the graph has, and is one run. Rows of a window that are close in length run together, where trials have
    shown that this does not change their answers.

    Finished windows are files in the folder OUTPUT.parts. If the process ends before the output is there, whatever
    ended it, the same call goes on after the windows that are done, and gives the same bytes. The output appears whole,
    by a move; then the folder is removed.

    A row that cannot be answered is reported, and the rest goes on. Its place in the output is empty: an object without
    outputs in JSON lines, False in `answered` in .npz, null in Parquet and Arrow.

    Args:
        model: the folder of a bundle, or an .onnx file.
        input: the file of the rows; "-" for JSON lines on stdin, which cannot be gone on with.
        output: the file of the answers, replaced if it exists; "-" for JSON lines on stdout.
        outputs: the names of the outputs to compute; None for all.
        errors: a file for the rows without an answer: JSON lines of `row` (from 0), `line` (from 1) and `reason`.
        keep: names in a row that are copied to its answer, such as "id". They need not be inputs.
        rows: of one run, at most.
        window: rows that are sorted by length together, and are one part; None for 512 to 2048, a part in 32 of the
            input, or 4096 if only rows of equal length share a run. Fewer if they have more than 32 MiB.
        waste: share of a run's steps that may be padding.
        finite: whether a row with NaN or infinity in an input is refused.
        provider: the onnxruntime execution provider.
        precision: in which the model computes, such as "int8", which a bundle must have; None for the only one.
        processes: how many run side by side, each on one core; None for all cores. The answers do not depend on it.
        engine: "local", or "ray" for Ray Data on the cluster at RAY_ADDRESS, or on one that is started here: the same
            answers. Each machine reads `model` and `input` at the same path; parts and output are written here.
        restart: begin anew, whatever an earlier run has done.
        input_format, output_format: "jsonl", "npz", "parquet" or "arrow"; None if the name of the file tells.
        progress: is called after each window.

    Raises:
        FileNotFoundError: `model`, `input`, or the folder of `output` does not exist.
        BundleError, LoadError, ProviderError: as for `Engine`.
        InputError: an unknown output; a column of the input that is not one of the model's; the parts of an earlier run
            are those of another input, model or option; another process is writing them.
        ValueError: an argument out of range, a format that is unknown, or one file for two purposes.
        RunError: a process ended, such as for want of memory, or Ray failed.
    """
    if processes is not None and (not isinstance(processes, int) or processes < 1):
        raise ValueError(
            f"`processes` (={processes!r}) must be a whole number from 1, or None for all cores."
        )
    _check_paths(input, output, errors)
    if engine not in ENGINES:
        raise ValueError(f"`engine` (={engine!r}) must be one of {', '.join(ENGINES)}.")
    options = Options(
        str(model),
        _names(outputs),
        _names(keep) or (),
        rows,
        window,
        waste,
        finite,
        provider,
        precision=precision,
    )
    with closing(open_source(str(input), input_format)) as source:
        scorer = Scorer(options)
        options = replace(options, window=scorer.window(source.about_rows()))
        _check_kept(options, scorer, source)
        answers = answers_format(str(output), output_format, scorer.outputs, source, options.kept)
        if engine == "ray":
            run_windows = _ray_windows(options, input, input_format, processes)
        else:
            count = processes or side_by_side(provider, None)
            run_windows = partial(on_cores, source, count)
        job = Job(options, source, answers, run_windows, progress)
        if str(output) == STANDARD:
            return job.to_standard_output(scorer, errors)
        output_path = target(output, "answers.jsonl")
        return job.to_file(scorer, Path(input), output_path, errors, restart)


def _check_paths(input: str | Path, output: str | Path, errors: str | Path | None) -> None:
    """Raises: ValueError: a file would be written over another."""
    paths = {"input": input, "output": output}
    if errors is not None:
        paths["errors"] = errors
    owners: dict[Path, str] = {}
    for name, path in paths.items():
        if str(path) == STANDARD:
            continue
        owner = owners.setdefault(Path(path).resolve(), name)
        if owner != name:
            raise ValueError(f"`{name}` (={str(path)!r}) must not be the file of `{owner}`.")


def _ray_windows(
    options: Options, input: str | Path, input_format: str | None, processes: int | None
) -> RunWindows:
    if not Path(input).is_file():
        raise InputError(f"{str(input)!r} is not a file, which each machine of a cluster reads.")
    try:
        from .on_ray import on_ray
    except ModuleNotFoundError as error:
        raise InputError(
            f"this needs `{error.name}`; run: pip install 'deploy-rnn[ray,score]'"
        ) from None
    return partial(on_ray, str(Path(input).resolve()), input_format, processes)


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(names, str):
        raise InputError(f"names (={names!r}) must be a list.")
    return None if names is None else tuple(names)


def _check_kept(options: Options, scorer: Scorer, source: Source) -> None:
    columns = source.columns()
    if columns is not None:
        scorer.check_columns(columns)
        for name in options.kept:
            if name not in columns:
                raise InputError(
                    f"`keep` has {name!r}, which is not in {source.name!r}; it has {', '.join(columns)}."
                )
    twice = set(options.kept) & {tensor.name for tensor in scorer.outputs}
    if twice:
        raise InputError(f"`keep` has {min(twice)!r}, which is an output, too.")
