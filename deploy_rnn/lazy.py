"""Public names that are loaded when first used (PEP 562), and a clear error when an optional package is missing."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from types import ModuleType


def lazy_names(
    package: str,
    homes: Mapping[str, str],
    extra: str,
    *,
    other_extras: Mapping[str, str] | None = None,
    subpackages: Collection[str] = (),
) -> Callable[[str], object]:
    """Make a module `__getattr__` for `package`.

    Args:
        package: `__name__` of the package.
        homes: public name -> the submodule that defines it.
        extra: what to install for them, as in `pip install 'deploy-rnn[extra]'`.
        other_extras: public name -> what to install for it, where that is more.
        subpackages: packages in `package` that are reached as its attributes.
    """

    def load(name: str) -> object:
        if name in subpackages:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            # A mistake of ours, which installing a package would not repair.
            if missing == "deploy_rnn":
                raise
            needed = (other_extras or {}).get(name, extra)
            raise ModuleNotFoundError(
                f"`{package}.{name}` needs `{missing}`, which is not installed; "
                f"run: pip install 'deploy-rnn[{needed}]'",
                name=missing,
            ) from None
        except AttributeError as error:
            # Python would say that this package has no such name, and not why.
            raise ImportError(
                f"`{package}.{name}` cannot be loaded: {error}{_hint(error.obj)}"
            ) from error

    return load


def _hint(incomplete: object) -> str:
    """What to do about a module that lacks something, where it is a mere folder that Python took for it."""
    if not isinstance(incomplete, ModuleType) or getattr(incomplete, "__file__", None) is not None:
        return ""
    folder = next(iter(getattr(incomplete, "__path__", [])), "")
    return f"; Python takes the folder {folder!r} for a package: rename it, or start elsewhere."
