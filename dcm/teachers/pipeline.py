"""What a diffusers pipeline saved, as teacher: its UNet2DModel and the betas of its scheduler."""

import json
import warnings
from pathlib import Path

from dcm.support.errors import InputError, why
from dcm.teachers.unet import PipelineConfig, UNetTeacher

ALLOWED = "a pipeline of a UNet2DModel and a scheduler with betas, as DDPMPipeline and DDIMPipeline are"
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def read_pipeline(folder: Path, null_class: bool = False) -> UNetTeacher:
    """The teacher in a folder that ``save_pretrained`` of a diffusers pipeline wrote, frozen, in float32.

    No code that lies there is run. Of the scheduler only its betas and what the network predicts are used: clipping and
    thresholds belong to its sampler, and would change the ODE.

    Parameters
    ----------
    folder : with ``model_index.json``; UNet and scheduler lie in folders of their own or, as in the first repositories on
        the hub (google/ddpm-cifar10-32 is one), beside it.
    null_class : whether the last of the network's classes stands for none, as guidance needs it.

    Raises :class:`InputError` for a pipeline that is not of :data:`ALLOWED`, and for what :func:`check` refuses.
    """
    import diffusers  # here, since importing diffusers takes seconds

    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = {name: part[1] for name, part in index.items() if isinstance(part, list) and part[-1]}
    except (OSError, ValueError, AttributeError, IndexError):
        raise InputError(f"{folder} has no model_index.json that can be read; allowed: {ALLOWED}.") from None
    of = ", ".join(f"{name} ({kind})" for name, kind in sorted(parts.items())) or "nothing"
    if parts.keys() != {"unet", "scheduler"} or parts["unet"] != "UNet2DModel":
        text = "; with text, SDXL alone, as the study sdxl" if any("text_encoder" in name for name in parts) else ""
        raise InputError(f"{folder} holds a pipeline of {of}; allowed: {ALLOWED}{text}.")
    own = {name: folder / name if (folder / name).is_dir() else folder for name in parts}
    try:
        with warnings.catch_warnings(action="ignore"):
            scheduler = getattr(diffusers, parts["scheduler"]).from_pretrained(own["scheduler"])
            unet, about = diffusers.UNet2DModel.from_pretrained(own["unet"], use_safetensors=True, output_loading_info=True)
    except Exception as error:  # whatever diffusers raises where it cannot read a file
        raise InputError(f"{folder} cannot be read as a pipeline of {of} ({why(error)}); save it there again.") from None
    if about["missing_keys"]:
        raise InputError(f"{own['unet']} has no weights for {about['missing_keys'][0]}; save the pipeline there again.")
    betas, prediction = getattr(scheduler, "betas", None), scheduler.config.get("prediction_type", "epsilon")
    # Dropout is off in the teacher, and a student is a function, too.
    network = {name: v for name, v in unet.config.items() if not name.startswith("_")} | {"dropout": 0.0}
    config = PipelineConfig(network, tuple(map(float, () if betas is None else betas)), prediction, null_class)
    check(config, parts["scheduler"], folder)
    teacher = UNetTeacher(config)
    teacher.unet.load_state_dict({name: weight.float() for name, weight in unet.state_dict().items()})
    return teacher.eval().requires_grad_(False)


def check(config: PipelineConfig, scheduler: str, folder: Path) -> None:
    """Raise :class:`InputError` for what a network or a scheduler of that name cannot be as a teacher."""
    network = config.network
    channels, classes = (network["in_channels"], network["out_channels"]), network["num_class_embeds"]
    faults = {
        f"has a {scheduler}, which has no betas; allowed: one that has, such as DDPMScheduler": not config.betas,
        f"has a {scheduler} whose betas reach 1, so that no signal is left; allowed: rescale_betas_zero_snr = false":
            any(beta >= 1 for beta in config.betas),
        f"predicts {config.prediction}; allowed: {', '.join(PREDICTIONS)}": config.prediction not in PREDICTIONS,
        "has a UNet with {} channels in and {} out; allowed: 1 or 3 in, and as many out".format(*channels):
            channels not in ((1, 1), (3, 3)),
        "has a UNet without sample_size; allowed: one whose config.json says how large its images are":
            network["sample_size"] is None,
        f"has a UNet with class_embed_type {network['class_embed_type']}; allowed: classes by num_class_embeds":
            network["class_embed_type"] is not None,
        f"has a UNet of {classes or 'no'} classes, the last of which cannot be null_class; allowed: null_class = false":
            config.null_class and (classes or 0) < 2,
    }  # fmt: skip
    for fault, found in faults.items():
        if found:
            raise InputError(f"{folder} {fault}.")
