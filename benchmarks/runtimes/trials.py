"""One file in one runtime: every case of its verification, and what came of each."""

from dataclasses import asdict, dataclass
from typing import Any

from deploy_rnn.checking.tolerance import Tolerance, model_precision
from deploy_rnn.errors import ExportError, VerificationError
from deploy_rnn.export.onnx_file import OnnxFile
from deploy_rnn.export.runtimes.opened import Source
from deploy_rnn.export.runtimes.process import RuntimeProcess
from deploy_rnn.export.runtimes.table import Runtime
from deploy_rnn.export.verification.cases import CaseMaker
from deploy_rnn.export.verification.runs import Plan, Session
from deploy_rnn.export.verification.verify import prepared

from .files import File

SIZES = (1, 2)
"""Of every dynamic axis, besides that of the example."""

LONG_STEPS = 200
"""Of one more case where steps are dynamic: an error that grows with them is seen."""

LONG_MESSAGE = 200


@dataclass
class Outcome:
    """What a runtime did with a file.

    Attributes:
        right, wrong, refused: how many cases, by what came of them.
        largest_error: of those that were right or wrong.
        reason: why the first one was refused, or by how much the first wrong one differs.
    """

    right: int = 0
    wrong: int = 0
    refused: int = 0
    largest_error: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Trial:
    """A file with its cases, for every runtime.

    Attributes:
        file: what it is.
        plan: its cases.
        source: the file as a runtime opens it.
    """

    file: File
    plan: Plan
    source: Source

    @classmethod
    def of(cls, file: File) -> "Trial":
        precision = model_precision(file.model)
        reference, call = prepared(file.model, file.args, file.kwargs, precision)
        onnx_file = OnnxFile.read(file.path)
        maker = CaseMaker(reference, call, onnx_file)
        cases = list(maker.cases(SIZES))
        if "T" in maker.example_sizes:
            cases.append(maker.long_case({"T": LONG_STEPS}, Tolerance()))
        plan = Plan(file.path, onnx_file, cases, [], Tolerance(), time_axes={})
        return cls(file, plan, Source.of(file.path, onnx_file))

    def facts(self) -> dict[str, Any]:
        """What the table of faults asks of a file, for JSON."""
        file = self.plan.file
        return {
            "family": self.file.family,
            "kind": self.file.kind,
            "way": self.file.way,
            "cases": len(self.plan.cases),
            "lengths": dict(file.lengths),
            "row_ends": file.row_ends,
            "recurrent": {name: sorted(types) for name, types in asdict(file.recurrent).items()},
            "dynamic_inputs": file.dynamic_inputs,
            "node_types": dict(file.node_types),
            "precision": file.precision,
        }


class RuntimeTrials:
    """One runtime, and every file in it; a context. A process that has died is started again."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._process: RuntimeProcess | None = None

    def __enter__(self) -> "RuntimeTrials":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def version(self) -> str:
        return str(self._started().version())

    def run(self, trial: Trial) -> Outcome:
        """Run every case of a file; stop where the process dies, which is taken for a refusal of all that are left."""
        outcome = Outcome()
        names = trial.source.inputs
        for number, case in enumerate(trial.plan.cases):
            process = self._started()
            if number == 0:
                process.open(trial.source)
            session = Session(
                lambda feeds, process=process: process.run({name: feeds[name] for name in names}),
                self.runtime.name,
                trial.plan,
                optimized=True,
            )
            try:
                session.check(case)
            except VerificationError as error:
                outcome.wrong += 1
                outcome.reason = outcome.reason or _short(error)
                continue
            except ExportError as error:
                outcome.refused += 1
                outcome.reason = outcome.reason or _short(error)
                if not process.is_alive:
                    self._end()
                    outcome.refused += len(trial.plan.cases) - number - 1
                    break
                continue
            _add(outcome, session)
        return outcome

    def _started(self) -> RuntimeProcess:
        if self._process is None:
            self._process = RuntimeProcess(self.runtime)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.close()
        self._process = None


def _add(outcome: Outcome, session: Session) -> None:
    worst = max(session.comparisons, key=lambda comparison: comparison.used)
    outcome.largest_error = max(outcome.largest_error, worst.max_abs_error)
    if worst.ok:
        outcome.right += 1
        return
    outcome.wrong += 1
    outcome.reason = (
        outcome.reason or f"`{worst.output}` differs by {worst.difference:.1e} on {worst.case}"
    )


def _short(error: Exception) -> str:
    """What is said after "FILE fails on CASE", in one line, without folders of this machine."""
    text = " ".join(str(error).split())
    text = text.partition(": ")[2] or text
    words = ["..." if "/" in word and len(word) > 20 else word for word in text.split()]
    return " ".join(words)[:LONG_MESSAGE]
