"""`--config run.yaml`: parameters by their names, as a run writes them into its project folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..config.fields import model_in_memory
from ..config.setting_names import by_field, flag_of
from ..config.training_params import ALIASES, LLMTrainingParams
from ..config.yaml_file import read_yaml
from ..errors import ParamsError

SECTIONS = ("data", "params", "hub")  # of a file for `autotrain --config`


def read_config(path: str) -> LLMTrainingParams:
    """Return the parameters that a YAML file sets.

    Args:
        path: A mapping of field names, with dashes or underscores; other names of fields are accepted too.

    Raises:
        ParamsError: A file that cannot be read, an unknown name (with the nearest), one that is given twice, or a
            value outside what is accepted.
    """
    params = LLMTrainingParams()
    for name, value in named_values(path).items():
        with naming_file(path):
            params.set(name, value)
    return params


def named_values(path: str) -> dict[str, object]:
    """Return the values of a YAML file by the names of the fields.

    Raises:
        ParamsError: A file that cannot be read, or a name that is given twice.
    """
    read = read_yaml(path, name=f"--config {path}")
    if not isinstance(read, (dict, type(None))):
        raise ParamsError(f"--config {path} holds a {type(read).__name__}; give 'name: value' lines.")
    sections = [name for name in SECTIONS if isinstance((read or {}).get(name), dict)]
    if sections:
        raise ParamsError(
            f"--config {path} has AutoTrain's sections ({', '.join(sections)}); give 'name: value' lines without "
            "sections and with the names of flags, such as model for base_model and data_path for data.path."
        )
    with naming_file(path):
        return by_field(read or {}, ALIASES)


@contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Name the file in an error of a value that it holds."""
    try:
        yield
    except ParamsError as error:
        raise ParamsError(f"--config {path}: {error}") from None


def refuse_models_in_memory(path: str, params: LLMTrainingParams) -> None:
    """Refuse a model or dataset that was an object in the memory of the run that wrote the file.

    Raises:
        ParamsError: Naming the flag to give instead.
    """
    for name in ("model", "teacher_model", "data_path"):
        found = model_in_memory(getattr(params, name))
        if found:
            raise ParamsError(f"--config {path}: {name} was a {found} in memory, not a file; give {flag_of(name)}.")
