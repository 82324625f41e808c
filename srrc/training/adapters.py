"""LoRA through `peft`, beside a captured graph: the base weights stay as they are, and the graph reads W + delta.

The graph that is trained takes weights as arguments, so an adapter needs no place in it: its product is added to the
weight that is handed over. Gates find the same linears as without one, and what was learned is merged for serving at
no cost. (LoRA: Hu et al. 2021.)
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srrc.errors import ModelError


class Adapters:
    """LoRA adapters on some of a model's linears, in a peft model that shares every weight with the model.

    weights: names of the weights to adapt ("model.layers.0.mlp.up_proj.weight"); those that are no weight of a module
             that peft knows are passed over
    rank:    of each adapter; its scale is 2
    Raises ModelError where peft can adapt none of them.
    """

    def __init__(self, model: nn.Module, weights: Sequence[str], rank: int, seed: int = 0) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        modules = dict(model.named_modules())
        kinds = ("Linear", "Conv1D")
        targets = [name.removesuffix(".weight") for name in weights]
        targets = [name for name in targets if type(modules.get(name)).__name__ in kinds]
        if not targets:
            raise ModelError(f"{type(model).__name__} has no linear that LoRA can adapt")
        turned = all(
            type(modules[name]).__name__ == "Conv1D" for name in targets
        )  # weights [in, out]: GPT-2's
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.0, fan_in_fan_out=turned
        )
        state, trained = torch.random.get_rng_state(), [held.requires_grad for held in model.parameters()]
        torch.manual_seed(seed)
        try:
            self.model: Any = get_peft_model(_twin(model), config)
        finally:
            torch.random.set_rng_state(state)
        prefix = "base_model.model."
        self._layers: dict[str, Any] = {
            f"{name.removeprefix(prefix)}.weight": module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self.parameters: dict[str, Tensor] = {
            name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        for parameter, wanted in zip(model.parameters(), trained, strict=True):  # peft froze what both share
            parameter.requires_grad_(wanted)

    @property
    def names(self) -> Sequence[str]:
        """Names of the adapted weights."""
        return list(self._layers)

    def delta(self, name: str) -> Tensor:
        """What is added to the weight `name`, of its shape: float32, with a gradient to `parameters`."""
        layer = self._layers[name]
        (which,) = layer.active_adapters
        delta: Tensor = layer.get_delta_weight(which)
        return delta

    def save(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, as peft reads them."""
        self.model.save_pretrained(str(folder))


def _twin(model: nn.Module) -> nn.Module:
    """The same modules over the very same tensors, so that peft can wrap them and leave `model` alone."""
    held: Mapping[int, Tensor] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, dict(held))
