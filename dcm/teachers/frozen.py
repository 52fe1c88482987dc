"""A frozen network in its fastest form: a second tree of modules on the same weights, which training never sees.

What is faster there would be in the way elsewhere: channels-last convolutions are slower without a compiler, compiled
blocks would be compiled anew for every adapter that a student puts into them, and FP8 weights cannot be trained.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dcm.support.errors import InputError

# Compiled one by one: a UNet repeats few of them, so that they compile in a fraction of the whole network's time.
REGIONS = ("ResnetBlock2D", "BasicTransformerBlock", "GroupNorm")
FP8_MAX = 448.0  # of float8_e4m3fn
ROOM = 2  # how far beyond the first call's inputs later ones may go


def base_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights below any adapters, by the names that they have without."""
    weights = network.state_dict().items()
    return {name.replace(".base_layer.", "."): w for name, w in weights if ".lora_" not in name}


def frozen_copy(network: nn.Module, dtype: torch.dtype, precision: str = "auto") -> nn.Module:
    """A diffusers network without its adapters, in `dtype` and channels-last memory.

    Weights that need no change are shared with `network`, not copied. With `precision` ``fp8`` linear layers are rounded
    further (:func:`to_float8`); raises :class:`InputError` where that is not possible.
    """
    if precision == "fp8":
        check_float8(network.device)
    with torch.device("meta"):
        copy = type(network).from_config(network.config)
    copy.load_state_dict({name: w.to(dtype) for name, w in base_weights(network).items()}, assign=True)
    if precision == "fp8":
        to_float8(copy)
    return copy.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def check_float8(device: torch.device) -> None:
    """Raise :class:`InputError` unless `device` multiplies FP8 matrices."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        needs = "a GPU with FP8 matrix products (NVIDIA Ada, Hopper or later)"
        raise InputError(f"teacher_precision = 'fp8' needs {needs}, and this is {name}; allowed here: auto.")


def _scale(largest: Tensor) -> Tensor:
    """The power of two, float32 on the device, by which values up to `largest` fit into FP8."""
    return torch.exp2((largest.float().clamp(min=1e-12) / FP8_MAX).log2().ceil())


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    """x / `scale` as float8_e4m3fn; what does not fit becomes the largest that does."""
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


class Float8Linear(nn.Module):
    """A frozen linear layer whose weights and inputs are rounded to FP8 (Micikevicius et al. 2022), by one scale each.

    The inputs' is that of the first call (:func:`calibrate`), with room to spare: rounding is then a part of the kernel
    that makes them, and the product is cuBLAS's. (A scale a row, found anew at every call, asks for a further pass over
    them, and for torch's own kernel: pytorch/pytorch issue 147971.) A float keeps its relative precision over a range of
    2^15, and powers of two round nothing themselves.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias, self.observing, weight = linear.bias, False, linear.weight.detach()
        self.register_buffer("scale", _scale(weight.abs().amax()))
        self.register_buffer("weight", _rounded(weight, self.scale))
        self.register_buffer("x_scale", torch.ones_like(self.scale))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), both in x's dtype, bfloat16."""
        if self.observing:
            self.x_scale.copy_(_scale(ROOM * x.abs().amax()))
        options = {"bias": self.bias, "out_dtype": x.dtype, "use_fast_accum": x.is_cuda}
        y = torch._scaled_mm(_rounded(x.flatten(0, -2), self.x_scale), self.weight.t(), self.x_scale, self.scale, **options)
        return y.unflatten(0, x.shape[:-1])


def calibrate(network: nn.Module, call: Callable[[], object]) -> None:
    """Let the layers that :func:`to_float8` made take their inputs' scales from one `call`, uncompiled; nothing after that."""
    if not (layers := network.__dict__.pop("uncalibrated", [])):
        return
    for layer in layers:
        layer.observing = True
    with torch.compiler.set_stance("force_eager"):
        call()
    for layer in layers:
        layer.observing = False


def to_float8(network: nn.Module) -> int:
    """Put :class:`Float8Linear` in place of the linear layers within attention blocks; returns how many.

    Convolutions and the embeddings of time, which cost little, stay as they are; so do sizes that are no multiple of 16.
    """
    layers = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear) and ".attentions." in path]
    chosen = [(path, layer) for path, layer in layers if layer.in_features % 16 == layer.out_features % 16 == 0]
    network.uncalibrated = [Float8Linear(layer) for _, layer in chosen]
    for (path, _), made in zip(chosen, network.uncalibrated):
        network.set_submodule(path, made)
    return len(chosen)


def compile_regions(network: nn.Module, **options) -> int:
    """Compile every block of a kind named in :data:`REGIONS` at its fixed shapes; returns how many there are.

    `options` go to ``torch.compile``. Blocks of equal shape share what is compiled, at their first call.
    """
    # By default torch gives up on a function after 8 shapes; SDXL has residual blocks of 12.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    within: tuple[str, ...] = ()
    for path, module in network.named_modules():
        if type(module).__name__ in REGIONS and not path.startswith(within):
            module.compile(dynamic=False, **options)
            within += (f"{path}.",)
    return len(within)


class PromptedRows:
    """A processor of cross-attention for batches of which only the first rows have a prompt.

    An attention over all-zero text has zero keys and values, whatever it asks: what is left is the output's bias. Given
    text for the first rows alone, the others are not computed, exactly.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        """As diffusers' processors: hidden_states (B, tokens, d), encoder_hidden_states (P, L, E) with P <= B."""
        prompted = len(encoder_hidden_states)
        out = self.processor(attn, hidden_states[:prompted], encoder_hidden_states, **others)
        if prompted == len(hidden_states):
            return out
        return torch.cat([out, attn.to_out[0].bias.expand_as(hidden_states[prompted:])])


def skip_empty_prompts(network: nn.Module) -> None:
    """Let the network's cross-attentions take text for the first rows of a batch alone; see :class:`PromptedRows`."""
    for path, attn in network.named_modules():
        if path.endswith(".attn2"):
            plain = attn.to_k.bias is None and attn.to_v.bias is None and attn.rescale_output_factor == 1
            if not plain or attn.residual_connection:
                raise ValueError(f"{path} does more than add its output's bias to rows without text.")
            attn.processor = PromptedRows(attn.processor)


def attention_by(first: str):
    """A context in which attention goes to `first`, ``cudnn`` or ``flash``, where that can do it."""
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *order] if first == "cudnn" else order, set_priority=True)
