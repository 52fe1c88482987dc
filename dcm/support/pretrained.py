"""Models of others: where they lie on this machine, and what goes wrong when they are read."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from dcm.support.errors import InputError
from dcm.support.files import project_path

# Of a model that is no pipeline; whoever fetched these alone has it, whatever else its repository holds.
READ = [
    "config.json", "model*.safetensors*", "diffusion_pytorch_model*.safetensors*",
    "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json",
]  # fmt: skip


def check_packages() -> None:
    """Raise :class:`InputError` when the packages that only this study needs are not installed."""
    missing = [name for name in ("transformers", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputError(f"the study sdxl needs {', '.join(missing)}: install them with pip install -e '.[sdxl]'.")


def locate(source: str, parameter: str, download: bool = False, pipeline: bool = False, low: bool = True) -> Path:
    """The folder of a model: `source` itself where it is one, else the hub's copy here, fetched when `download`.

    Of a whole `pipeline` the 16-bit weights are taken when `low`. Raises :class:`InputError` that names the `parameter`.
    """
    folder = project_path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import constants, snapshot_download

    options: dict = {"local_files_only": not download}
    try:
        if not pipeline:
            return Path(snapshot_download(source, allow_patterns=READ, **options))
        from diffusers import DiffusionPipeline

        options |= {"variant": "fp16"} if low else {}
        return Path(DiffusionPipeline.download(source, use_safetensors=True, **options))
    except Exception as error:  # whatever the hub's client raises: it is not here and could not be fetched
        tried = f" ({' '.join(str(error).split())[:160]})" if download else ""
        sought = f"{folder} is no folder, and {constants.HF_HUB_CACHE} has no whole copy of it{tried}"
        raise InputError(f"{parameter} = {source!r} is not here: {sought}; put it there, or set download to true.") from None


@contextmanager
def readable_model(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a model is read into one sentence."""
    check_packages()
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield  # torch_dtype warns: its new name is unknown to older diffusers
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} cannot be read as a model ({text}); fetch it again.") from None


def loading(folder: Path, dtype, low: bool) -> dict:
    """Options of ``from_pretrained``: safetensors in `dtype`, of 16-bit files where `low` and the folder has them."""
    variant = "fp16" if low and any(folder.glob("*.fp16.safetensors")) else None
    return {"torch_dtype": dtype, "use_safetensors": True, "variant": variant}
