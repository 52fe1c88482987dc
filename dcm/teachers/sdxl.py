"""SDXL's UNet as a teacher: noise prediction on latents, conditions that are indices of cached prompts.

The network is called with the integer timestep t itself (1..T), as in the paper's code. (diffusers' own schedulers call
it with t - 1: mind the difference when comparing.)
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcm.schedule import NoiseSchedule
from dcm.teacher import both_halves, guide
from dcm.teachers import frozen


@dataclass(frozen=True)
class Prompts:
    """What the UNet is told of P prompts: text embeddings and micro-conditioning (Podell et al. 2023, section 2.2).

    Condition i < P is prompt i for a whole image of the size aimed at, as pipelines ask for it; :meth:`as_trained` is that
    for the image that it was encoded with. P more is the null counterpart: zeros in place of both embeddings, the same ids.
    """

    embeddings: Tensor  # (P, L, E), the second-to-last hidden states of both text encoders, side by side
    pooled: Tensor  # (P, F), the pooled output of the second one
    size_ids: Tensor  # (P, 6): height and width of the image, top and left of the crop, height and width aimed at

    def __len__(self) -> int:
        return len(self.pooled)

    def to(self, device: torch.device) -> "Prompts":
        """The same, held on `device`."""
        return Prompts(self.embeddings.to(device), self.pooled.to(device), self.size_ids.to(device))

    def as_trained(self, i: Tensor) -> Tensor:
        """Conditions of prompts `i` under the size ids of their own images."""
        return i + 2 * len(self)

    def null(self, condition: Tensor) -> Tensor:
        """The null counterpart, in `condition`'s shape; that of a null condition is itself."""
        P = len(self)
        return condition % P + P + 2 * P * (condition >= 2 * P)

    def of(self, condition: Tensor, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """The UNet's ``encoder_hidden_states`` and ``added_cond_kwargs`` for `condition` (B,), on its device."""
        i, device = (condition % len(self)).to(self.pooled.device), condition.device
        text, pooled = (v[i].to(device, dtype) for v in (self.embeddings, self.pooled))
        given = (condition % (2 * len(self)) < len(self)).to(dtype)[:, None]
        # Sizes stay in float32: bfloat16 has no 1023.
        own = self.size_ids[i].to(device, torch.float32)
        whole = torch.cat([own[:, 4:], torch.zeros_like(own[:, 2:4]), own[:, 4:]], 1)
        sizes = torch.where((condition < 2 * len(self))[:, None], whole, own)
        return text * given[..., None], {"text_embeds": pooled * given, "time_ids": sizes}


class PromptedUNet:
    """One UNet, shared by the teacher and every student: called as ``network(x, t, condition)``, it predicts noise.

    A student is the UNet with an adapter, the teacher the UNet with none; weights are held once, frozen. ``in_use`` names
    the adapter in use, None for the teacher. `unet` : diffusers' ``UNet2DConditionModel``. `chunk` : samples at once.
    """

    def __init__(self, unet, prompts: Prompts, chunk: int):
        self.unet, self.prompts, self.chunk = unet.eval().requires_grad_(False), prompts, chunk
        self.in_use: str | None = None
        self._layers: list = []
        self._ownerless: list[str] = []  # adapters that are to be removed

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the network's inner work."""
        return self.unet.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.conv_in.weight.device

    def adapters_changed(self) -> None:
        """Look for adapter layers anew; none is in use afterwards."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [m for m in self.unet.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self._layers:
            for name in layer.adapter_layer_names:
                getattr(layer, name).requires_grad_(True)  # peft left it to the last one added
            layer.cast_input_dtype_enabled = False  # autocast does it, without float32 copies of activations
            layer._disable_adapters = True
        self.in_use = None

    def leave(self, adapters: list[str]) -> None:
        """Have these adapters removed when the network is next used: now, someone may be walking through its modules."""
        self._ownerless.extend(adapters)

    def remove_ownerless(self) -> None:
        """Remove what :meth:`leave` was told of; none is in use afterwards, if there was any."""
        names, self._ownerless = self._ownerless, []
        if names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that another adapter is the active one now
                self.unet.delete_adapters(names)
            self.adapters_changed()

    def use(self, adapter: str | None) -> None:
        """Put the adapter of this name in use, or none."""
        self.remove_ownerless()
        # What peft's enable_adapters and set_adapter do, but for their walk through every parameter's requires_grad,
        # which takes a tenth of a second on SDXL, several times an update.
        for layer in self._layers if adapter != self.in_use else ():
            layer._disable_adapters = adapter is None
            if adapter:
                layer._active_adapter = [adapter]
        self.in_use = adapter

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps (B, *shape) in float32, by the network as it is in use, all samples at once."""
        text, added = self.prompts.of(condition, self.dtype)
        # Adapters are in float32: autocast brings their products to the network's precision.
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low and self.in_use is not None):
            out = self.unet(x.to(self.dtype), t, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)
        return out[0].to(x.dtype)

    def in_chunks(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The same, `chunk` samples at a time."""
        return torch.cat([self(*rows) for rows in zip(*(v.split(self.chunk) for v in (x, t, condition)))])


class SDXLTeacher:
    """A :class:`~dcm.teacher.Teacher`: the UNet with no adapter in use, on latents of `shape` (C, h, w)."""

    def __init__(self, network: PromptedUNet, schedule: NoiseSchedule, shape: tuple[int, ...]):
        self.network, self.schedule, self.shape = network, schedule, shape
        self.num_classes, self.precision = len(network.prompts), "auto"
        self.forget()

    def freeze(self, precision: str = "auto") -> None:
        """Choose the copy's precision: ``auto`` (the weights' own) or ``fp8``; raises :class:`InputError` without FP8."""
        if precision == "fp8":
            frozen.check_float8(self.network.device)
        self.forget()
        self.precision = precision

    def forget(self) -> None:
        """Give back the memory of the copy that :meth:`compile_for` made."""
        self._fast: Any = None  # the frozen copy
        self._sizes: set[int] = set()  # of the batches that it is used for

    def compile_for(self, batch: int, compile: str = "regions", attention: str = "cudnn") -> None:
        """Evaluate batches of exactly `batch` samples by a frozen copy, compiled at the first such call.

        It shares its linear weights with the students' network, and moves the prompts to its device. `compile`
        (``regions``: repeated blocks once, ``whole``: the network as one, ``no``: nothing) and `attention` (see
        :func:`~dcm.teachers.frozen.attention_by`) count when the copy is made, at the first call.
        """
        if self._fast is None:
            network, self._attention = self.network, attention
            network.prompts = network.prompts.to(network.device)
            self._fast = frozen.frozen_copy(network.unet, network.dtype, self.precision)
            frozen.skip_empty_prompts(self._fast)
            if compile == "regions":
                frozen.compile_regions(self._fast)
            elif compile == "whole":
                self._fast.compile(dynamic=False)
        self._sizes.add(batch)

    def _fast_noise(self, x: Tensor, t: Tensor, condition: Tensor, prompted: int) -> Tensor:
        """eps (B, *shape), all samples at once; those from `prompted` on have the null condition."""
        text, added = self.network.prompts.of(condition, self.network.dtype)
        low = x.to(self.network.dtype, memory_format=torch.channels_last)
        call = lambda: self._fast(low, t, encoder_hidden_states=text[:prompted], added_cond_kwargs=added, return_dict=False)
        with frozen.attention_by(self._attention):
            frozen.calibrate(self._fast, call)
            return call()[0].to(x.dtype)

    @torch.no_grad()
    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps(x, t, c): `x` (*batch, *shape), `t` (*batch) integers 1..T, `condition` (*batch); returns x's shape."""
        batch = x.shape[: x.ndim - len(self.shape)]
        rows = x.reshape(-1, *self.shape), t.expand(batch).reshape(-1), condition.expand(batch).reshape(-1)
        if len(rows[0]) in self._sizes:
            return self._fast_noise(*rows, prompted=len(rows[0])).reshape(x.shape)
        self.network.use(None)
        return self.network.in_chunks(*rows).reshape(x.shape)

    @torch.no_grad()
    def guided_noise(self, x: Tensor, t: Tensor, condition: Tensor, guidance: float | Tensor) -> Tensor:
        """As :func:`dcm.teacher.guided_noise`; the null half skips attention to its empty prompt."""
        if isinstance(guidance, (int, float)) and guidance == 1:
            return self.predict_noise(x, t, condition)
        both = both_halves(self, x, t, condition)
        if 2 * len(x) in self._sizes:
            return guide(self._fast_noise(*both, prompted=len(x)), guidance)
        return guide(self.predict_noise(*both), guidance)

    def null_condition(self, condition: Tensor) -> Tensor:
        """That of :meth:`Prompts.null`."""
        return self.network.prompts.null(condition)
