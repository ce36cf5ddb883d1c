"""Manifests held against KServe's own models: `manifests.py FILE...` prints what is wrong, a line for each.

The models are made from the schemas of KServe's resources: every field must be one of theirs, of its type, and those
that are required must be there. What is Kubernetes' own, such as probes, is held against its client's models.
"""

import re
import sys
from pathlib import Path

import kserve
import yaml
from kubernetes import client as kubernetes

KINDS = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1alpha1", "ClusterServingRuntime"): "V1alpha1ClusterServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def main():
    faults = []
    for path in sys.argv[1:]:
        for manifest in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
            kind = manifest.get("apiVersion"), manifest.get("kind")
            if kind in KINDS:
                faults += check(manifest, KINDS[kind], kind[1])
            else:
                faults.append(f"{path}: {kind} is not a resource of KServe")
    print("\n".join(faults))


def check(value, kind, place):
    """What is wrong with a value that must be of a kind, as the models name it."""
    if value is None:
        return [f"{place} is empty"]
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{place} must be a list"]
        items = enumerate(value)
        return [
            fault for number, item in items for fault in check(item, match[1], f"{place}[{number}]")
        ]
    if match := re.fullmatch(r"dict\((\w+), (.*)\)", kind):
        if not isinstance(value, dict):
            return [f"{place} must be an object"]
        items = value.items()
        return [fault for name, item in items for fault in check(item, match[2], f"{place}.{name}")]
    if kind in SIMPLE:
        fits = isinstance(value, SIMPLE[kind]) and (kind == "bool") == isinstance(value, bool)
        return [] if fits else [f"{place} (={value!r}) must be {kind}"]
    model = model_of(kind)
    return check_fields(value, model, place) if model else []


def model_of(kind):
    """The class of KServe or Kubernetes; None for what may be anything, such as a quantity or a port."""
    return (
        getattr(kserve, kind, None)
        or getattr(kserve.models, kind, None)
        or getattr(kubernetes, kind, None)
    )


def check_fields(value, model, place):
    if not isinstance(value, dict):
        return [f"{place} must be an object"]
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    faults = [f"{place} has no field `{name}`" for name in value if name not in names]
    for json_name, name in names.items():
        if json_name in value:
            faults += check(value[json_name], model.openapi_types[name], f"{place}.{json_name}")
        elif is_required(model, name):
            faults.append(f"{place} lacks `{json_name}`")
    return faults


def is_required(model, name):
    """Whether a model refuses to be without a field."""
    if hasattr(model, "model_fields"):  # those of Kubernetes are pydantic's
        field = model.model_fields.get(name)
        return field is not None and field.is_required()
    made = model.__new__(model)
    made.local_vars_configuration = kubernetes.Configuration()
    made.local_vars_configuration.client_side_validation = True
    try:
        setattr(made, name, None)
    except ValueError:
        return True
    return False


main()
