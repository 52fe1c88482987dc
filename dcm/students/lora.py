"""Students that are adapters of one frozen UNet: LoRA (Hu et al. 2021) through peft, on the layers of the paper's code."""

import itertools
import math
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.students.lockstep import Students, follow
from dcm.support.files import atomic
from dcm.support.seeds import generator
from dcm.teachers.sdxl import PromptedUNet

# Every attention, convolution, linear and time projection layer within the blocks (the paper's code).
TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
]  # fmt: skip
_numbers = itertools.count()


class LoRAStudents(Students):
    """M adapters of `network`, one a seed. Its parameters and state are the adapters' alone, in float32.

    The network is held, not owned: the teacher is the same one with no adapter in use. Members of equal seed start equal,
    and all start as the teacher (B = 0). `rank` is the adapters' alpha too: the scale alpha / rank is 1.

    In float16 small gradients vanish, so each member's loss is scaled up, as torch.amp.GradScaler does it: the scale is
    halved, and the member's update left out, when a gradient is not finite.
    """

    scale: Tensor  # (M,)
    microbatch = 0  # samples whose activations are held at once in training, 0 for all

    def __init__(self, network: PromptedUNet, seeds: Sequence[int], rank: int):
        from peft import LoraConfig

        super().__init__()
        network.remove_ownerless()
        self.network, self.size = network, len(seeds)
        self.names = [f"student{next(_numbers)}" for _ in seeds]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0, init_lora_weights=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are several adapters
            for name in self.names:
                network.unet.add_adapter(config, adapter_name=name)
        network.adapters_changed()
        self.adapters = nn.ModuleList(
            self._initialised(name, generator("cpu", seed, "student")) for name, seed in zip(self.names, seeds)
        )
        self.scaled = network.dtype == torch.float16
        self.register_buffer("scale", torch.full((self.size,), 2.0**16 if self.scaled else 1.0))
        # Adapters go with the students that own them.
        weakref.finalize(self, network.leave, self.names).atexit = False

    def _initialised(self, adapter: str, g: torch.Generator) -> nn.ParameterDict:
        """The parameters of one adapter by name of layer: A drawn as peft draws it, B zero, in float32."""
        own = {}
        for path, layer in self.network.unet.named_modules():
            for side in ("lora_A", "lora_B"):
                if adapter in getattr(layer, side, ()):
                    weight = getattr(layer, side)[adapter].weight
                    start = torch.zeros(weight.shape)
                    if side == "lora_A":
                        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=g)
                    weight.data = start.to(weight.device)
                    own[f"{path}/{side}".replace(".", "/")] = weight.requires_grad_(True)
        return nn.ParameterDict(own)

    @property
    def capturable(self) -> bool:
        """Unless a CPU is asked in between: for the prompts, or the random state that checkpointing keeps."""
        unet, prompts = self.network.unet, self.network.prompts
        return not unet.is_gradient_checkpointing and prompts.pooled.device == self.network.device

    @property
    def clips_on_device(self) -> bool:
        """Unless there is a loss scale, which the CPU reads."""
        return not self.scaled

    def parts(self, trained: Sequence[slice]) -> list[slice]:
        """One member at a time: a graph must be walked back while its own adapter is the one in use."""
        return [slice(m, m + 1) for some in trained for m in range(self.size)[some]]

    def microbatches(self, batch: int) -> list[slice]:
        """As many samples as :attr:`microbatch` says."""
        size = self.microbatch or batch
        return [slice(i, i + size) for i in range(0, batch, size)]

    def follow(self, who: slice, whom: slice, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take over weights and loss scale."""
        follow(self.adapters[who], self.adapters[whom], optimizer)
        self.scale[who] = self.scale[whom]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, members: slice = slice(None)) -> Tensor:
        """Predicted noise (M, B, *shape)."""
        return torch.stack([self._one(name, *row) for name, *row in zip(self.names[members], x, t, condition)])

    def _one(self, name: str, *inputs: Tensor) -> Tensor:
        self.network.use(name)
        return (self.network if torch.is_grad_enabled() else self.network.in_chunks)(*inputs)

    def backward(self, loss: Tensor, part: slice) -> None:
        """Add the gradients of `loss` (members of the part,), scaled, to the parameters."""
        (loss * self.scale[part].to(loss.device)).sum().backward()

    def clip_gradients(self, max_norm: float) -> None:
        """Clip per member; take the scale out first."""
        for m, adapter in enumerate(self.adapters):
            scale = float(self.scale[m]) if self.scaled else 1.0
            for p in adapter.parameters():
                if scale != 1 and p.grad is not None:
                    p.grad.div_(scale)
            norm = nn.utils.clip_grad_norm_(adapter.parameters(), max_norm)
            if scale > 1 and not norm.isfinite():
                self.scale[m] /= 2
                for p in adapter.parameters():
                    p.grad = None  # the optimiser leaves out what has no gradient

    def save(self, m: int, folder: str | Path) -> Path:
        """Write member m: :func:`save_adapter`."""
        return save_adapter(self.network.unet, self.names[m], folder)


def save_adapter(unet, name: str, folder: str | Path) -> Path:
    """Write a network's adapter in diffusers' LoRA format, for ``pipe.load_lora_weights(folder)``; returns the file."""
    from diffusers import StableDiffusionXLPipeline
    from peft.utils import get_peft_model_state_dict

    # Named as peft names them. (diffusers' convert_state_dict_to_diffusers renames the attention layers only, and
    # load_lora_weights, which judges by the first name, then leaves those out without an error.)
    state = get_peft_model_state_dict(unet, adapter_name=name)
    path = Path(folder) / "pytorch_lora_weights.safetensors"
    with atomic(path) as temporary:
        StableDiffusionXLPipeline.save_lora_weights(temporary.parent, unet_lora_layers=state, weight_name=temporary.name)
    return path
