"""Runs a stage of the engine on fake CUDA tensors: ``stages.py STAGE SHAPE DEVICE`` prints what came of it in JSON.

Devices, types and shapes are as on a GPU; there are no numbers. So whatever would make the host wait for one, to index
by a mask or to branch on a value, raises here.
"""

from __future__ import annotations

import functools
import json
import random
import sys

import fake_cuda_device  # noqa: F401 (before torch)
import torch
import torch._subclasses.fake_tensor as fake_tensors
import torch.cuda.amp.common
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torchao.optim import subclass_8bit
from transformers import LlamaForCausalLM, masking_utils

from unlearnbench.contracts import Context
from unlearnbench.data.encoder import EncodedRow
from unlearnbench.engine import cuda_graph, decoding, logprobs, scoring
from unlearnbench.engine.capabilities import Capabilities, TriedWay
from unlearnbench.engine.engine import Engine
from unlearnbench.engine.prefix_tree import PackedBatch, pack_trees
from unlearnbench.training import device_benchmark, loop
from unlearnbench.training.device_benchmark import SHAPES
from unlearnbench.training.loss import Batch
from unlearnbench.training.loss_method import FineTune
from unlearnbench.training.models import with_adapter

# After the imports: libraries that find a GPU look for what a build without CUDA does not have.
fake_tensors.init_gpu_context = lambda device: None
FakeTensorMode.avoid_device_init = property(lambda self: True)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 2
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_capability = lambda *_: (9, 0)
torch.cuda.is_bf16_supported = lambda *_, **__: True
torch.cuda.mem_get_info = lambda *_: (60 * 2**30, 80 * 2**30)
torch.cuda.memory_allocated = torch.cuda.memory_reserved = torch.cuda.max_memory_allocated = lambda *_: 0
torch.cuda.empty_cache = torch.cuda.synchronize = torch.cuda.reset_peak_memory_stats = lambda *_: None
torch.Tensor.pin_memory = lambda tensor, *_: tensor
torch.cuda.amp.common.amp_definitely_not_available = lambda: False

SUITS = 10**9
# The table of 256 numbers of 8-bit moments is a matter of numbers.
subclass_8bit.get_qmap_signed()
subclass_8bit.get_qmap_unsigned()


class Peak(TorchDispatchMode):
    """Bytes of fake storages that are alive at a time, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.most = 0
        # What is compiled keeps nothing in between.
        self.compiled = False
        torch.compile = lambda work, **_: functools.partial(self._compiled, work)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda" and not self._wraps(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _compiled(self, work, *arguments):
        self.compiled = True
        work(*arguments)
        self.compiled = False

    def _wraps(self, tensor) -> bool:
        return self.compiled or is_traceable_wrapper_subclass(tensor)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


def fake_model(shape, device, dtype, rank=0):
    """A model whose weights are fake, on a device; with a rank it has an adapter."""
    config = device_benchmark._config(SHAPES[shape], dtype)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model = with_adapter(model, rank) if rank else model
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                kind = torch.float32 if "inv_freq" in name else dtype
                made = torch.empty(value.shape, dtype=kind, device=device)
                held[name] = torch.nn.Parameter(made, value.requires_grad) if name in module._parameters else made
    (model.get_base_model() if rank else model).tie_weights()
    return model.eval()


def rows_of(shape, count, shared=2):
    """Rows of about TOFU's lengths; so many share a prompt."""
    draw, vocabulary = random.Random(0), SHAPES[shape].vocabulary
    made = []
    for number in range(count):
        if number % shared == 0:
            prompt = tuple(draw.randrange(1, vocabulary) for _ in range(40))
        rest = tuple(draw.randrange(1, vocabulary) for _ in range(56 - number % 3))
        made.append(EncodedRow(prompt + rest, 40))
    return made


class KnowsAll(Engine):
    """An engine that need not try out what suits a model, which takes numbers."""

    def capabilities(self, model):
        ways = {name: TriedWay(True, SUITS, SUITS) for name in ("trees", "padded", "batched", "shared", "cached")}
        return Capabilities(True, False, 2**31, 4096, unmasked=True, repeats=True, **ways)


def faked_trees(mode):
    """Trees are packed for real and then faked: which nodes they have in common is a matter of numbers."""

    def pack(trees, dtype, device, nodes):
        with unset_fake_temporarily():
            real = pack_trees(trees, dtype, "cpu", nodes)
        names = ("input_ids", "position_ids", "attention_mask", "where", "nodes", "targets")
        return PackedBatch(*(mode.from_tensor(getattr(real, name), static_shapes=True).to(device) for name in names))

    return pack


def training(mode, shape, device, optimiser="adamw", rows="8", kept="all"):
    model, engine = fake_model(shape, device, torch.float32, 16 if optimiser == "lora" else 0), KnowsAll(device)
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    forget = engine.collate(rows_of(shape, int(rows), 1))
    batches = [[Batch({"forget": forget})]] * 3
    loop._read = lambda pending, ctx, words: pending.clear()
    ctx = Context("fake", 0, engine, lambda _: None, autocast="bf16", optimiser=optimiser)
    recipe = FineTune(epochs=1, batch_size=int(rows), gradient_checkpointing=kept == "inputs")
    out = loop.train(model, recipe, iter(batches), 3 * int(rows), ctx)
    return {
        "tokens": forget.input_ids.numel(),
        "weights": weights,
        "steps": ctx.meter.optimiser_steps,
        "devices": sorted({str(weight.device) for weight in out.parameters()}),
        "types": sorted({str(weight.dtype) for weight in out.parameters()}),
    }


def scored(mode, shape, device, shared):
    model, engine = fake_model(shape, device, torch.bfloat16), KnowsAll(device)
    rows = rows_of(shape, 64, shared)
    with torch.no_grad():
        passes = list(scoring._Scorer(engine, model, 1).passes(rows))
    return {
        "scored": sum(found[0].shape[0] for _, found in passes),
        "expected": sum(row.answer_tokens for row in rows),
        "devices": sorted({str(part.device) for _, found in passes for part in found}),
        "ways": engine.counters.as_dict()["forward passes"],
    }


def trees(mode, shape, device):
    return scored(mode, shape, device, 2)


def padded(mode, shape, device):
    return scored(mode, shape, device, 1)


def decoded(mode, shape, device):
    model, engine = fake_model(shape, device, torch.bfloat16), KnowsAll(device)
    # What is written is a number; every row gets as many tokens as it may.
    decoding._Batch._keep = lambda batch, tokens: [
        line.append([1] * tokens.shape[1], batch._decoder.eos) for line in batch.lines
    ]
    cuda_graph.RecordedSteps._record = lambda steps: None
    prompts = [row.ids[: 30 + place % 5] for place, row in enumerate(rows_of(shape, 32))]
    written = engine.generate(model, prompts, 24, [])
    return {"rows": len(written), "tokens": sorted({len(line) for line in written})}


if __name__ == "__main__":
    stage, shape, place, *more = sys.argv[1:]
    if stage != "decoded":
        # Without numbers transformers takes a pass for one that is compiled, and does not look whether a mask hides
        # anything, as it does of a prompt that is read and of steps that are not recorded.
        masking_utils.is_tracing = lambda *_: False
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in (scoring, logprobs):
            module.pack_trees = faked_trees(mode)
        with Peak() as peak:
            found = globals()[stage](mode, shape, torch.device(place), *more)
    print(json.dumps({**found, "peak_bytes": peak.most}))
