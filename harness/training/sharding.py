"""One cell over several devices: weights, gradients and optimiser states are sharded while a model is trained.

Processes are started by ``torch.distributed.run`` (``run.processes``), or by ``accelerate launch -m unlearnbench
run-cell FOLDER``. Each trains on its part of every batch; afterwards each has the whole model, and the first alone
measures it and writes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from .._compat import layer_blocks
from ..engine.numerics import PRECISIONS
from ..engine.process_group import processes


class Sharded:
    """A model whose weights are spread over all processes (FSDP2, one group for each block of layers).

    Weights are held in float32. Under autocast they are gathered in its precision, which is half of what would be sent
    and held; gradients are added up in float32.
    """

    def __init__(self, model: Any, device: torch.device, autocast: str) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # What the whole model is put into afterwards: the same modules with no weights in them.
        empty = {id(p): torch.nn.Parameter(p.new_empty(0), p.requires_grad) for p in model.parameters()}
        self._shell = copy.deepcopy(model, empty)
        mesh = init_device_mesh(device.type, (processes(),))
        policy = MixedPrecisionPolicy(param_dtype=PRECISIONS.get(autocast), reduce_dtype=torch.float32)
        blocks = layer_blocks(model)
        for module in list(model.modules()):
            if type(module).__name__ in blocks:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        self.model = fully_shard(model, mesh=mesh, mp_policy=policy)

    def whole(self) -> Any:
        """The model with all its weights, in every process."""
        with torch.no_grad():
            pairs = zip(self._shell.named_parameters(), self.model.named_parameters(), strict=True)
            for (_, mine), (_, trained) in pairs:
                mine.data = trained.full_tensor()
        return self._shell
