"""Reading a file that is to be checked: it must be a valid ONNX model, and numpy must have its types."""

from pathlib import Path

import onnx

from deploy_rnn.errors import ExportError

from ..onnx_file import OnnxFile


def read_valid(path: Path, shown_as: Path) -> OnnxFile:
    """Read a file, which may still have a temporary name.

    Raises:
        ExportError: it is not a valid ONNX model.
        LoadError: deploy-rnn's metadata in it is damaged.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        # The file may still have a temporary name.
        reason = str(error).strip().replace(str(path), shown_as.name)
        raise ExportError(f"{shown_as.name} is not a valid ONNX model: {reason}") from error
    except (
        UnicodeDecodeError
    ) as error:  # onnx decodes its own message, which has a name of the file in it
        raise ExportError(
            f"{shown_as.name} is not a valid ONNX model: a name in it is not UTF-8."
        ) from error
    return OnnxFile.read(path, shown_as=shown_as)


def refuse_bfloat16(file: OnnxFile) -> None:
    """Raises: ExportError: an input or output is bfloat16."""
    for spec in (*file.inputs, *file.outputs):
        if spec.dtype == "bfloat16":
            what = "take" if spec in file.inputs else "return"
            raise ExportError(
                f"`{spec.name}` is bfloat16, which numpy lacks, and so onnxruntime in Python: let `forward` {what} "
                "float32."
            )
