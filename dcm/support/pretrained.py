"""Models of others: where they lie on this machine, and what goes wrong when they are read."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from dcm.support.errors import InputError
from dcm.support.files import project_path


def check_packages() -> None:
    """Raise :class:`InputError` when the packages that only this study needs are not installed."""
    missing = [name for name in ("transformers", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputError(f"the study sdxl needs {', '.join(missing)}: install them with pip install -e '.[sdxl]'.")


def locate(source: str, parameter: str, download: bool = False, pipeline: bool = False, low: bool = True) -> Path:
    """The folder of a model: `source` itself where it is one, else the hub's copy on this machine.

    Parameters
    ----------
    parameter : its name, for the error. download : whether the hub may be asked. pipeline : whether it is a whole
    pipeline, of which the 16-bit weights are taken when `low`.

    Raises :class:`InputError` that says where it was looked for.
    """
    folder = project_path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import constants, snapshot_download

    try:
        if pipeline:
            from diffusers import DiffusionPipeline

            options = {"variant": "fp16"} if low else {}
            return Path(
                DiffusionPipeline.download(source, use_safetensors=True, local_files_only=not download, **options)
            )
        kept = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(source, allow_patterns=kept, local_files_only=not download))
    except Exception as error:  # whatever the hub's client raises: it is not here and could not be fetched
        tried = f" ({' '.join(str(error).split())[:160]})" if download else ""
        raise InputError(
            f"{parameter} = {source!r} is not here: {folder} is no folder, and {constants.HF_HUB_CACHE} has no copy of it"
            f"{tried}; put it there, or set download to true."
        ) from None


class readable_model:
    """Turns what goes wrong while a model is read into one sentence."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        check_packages()
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype: its new name is unknown to older diffusers

    def __exit__(self, kind, error, trace) -> None:
        self.quiet.__exit__(kind, error, trace)
        if isinstance(error, (OSError, ValueError, KeyError, RuntimeError)) and not isinstance(error, InputError):
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{self.folder} cannot be read as a model ({text}); fetch it again.") from None


def variant(folder: Path, low: bool) -> dict[str, str]:
    """Options that ask for 16-bit weights, where `low` and the folder has them as files of their own."""
    return {"variant": "fp16"} if low and any(folder.glob("*.fp16.safetensors")) else {}
