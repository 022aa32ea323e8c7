"""Every private or fragile interface of other libraries that the harness uses, in one place.

tox environments run the tests of this module against the oldest and the newest transformers 5 and torch that
``pyproject.toml`` allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# -- transformers: attention ------------------------------------------------------------------------------------------


def attention_of(model: Any) -> str:
    """The name of a model's attention implementation; empty where it has none of transformers'."""
    return str(getattr(model.config, "_attn_implementation", "") or "")


def register_attention(name: str, attention: Any) -> None:
    """Make an attention function known to transformers, with masks as its eager attention has them."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask)


@contextlib.contextmanager
def attention_set_to(model: Any, name: str) -> Iterator[None]:
    """Within this every part of a model attends by another implementation."""
    from transformers import PreTrainedModel

    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    before = [(part, attention_of(part)) for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(name)
        yield
    finally:
        for part, kept in before:
            part.set_attn_implementation(kept)


def share_prefix(keys: Any, prefix: Any) -> None:
    """Leave what all rows share with a layer's keys, where the attention function that is called with them finds it.

    transformers hands an attention function nothing else of a cache.
    """
    keys.shared_prefix = prefix


def shared_prefix_of(keys: Any) -> Any:
    """What ``share_prefix`` left with a layer's keys."""
    return keys.shared_prefix


# -- transformers: caches ---------------------------------------------------------------------------------------------


def can_select(layer: Any) -> bool:
    """Whether rows of a cache layer of transformers' own can be kept and dropped."""
    return hasattr(layer, "batch_select_indices")


def select_rows(layer: Any, rows: Any) -> None:
    """Keep some rows of a cache layer of transformers' own."""
    layer.batch_select_indices(rows)


def cache_keyword(model: Any) -> str:
    """The name of the argument by which a model takes a cache: ``past_key_values`` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def without_cache(model: Any) -> dict[str, bool]:
    """The argument by which a model keeps no keys and values of a pass; empty where it knows of none."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


@contextlib.contextmanager
def unpacked_rows() -> Iterator[None]:
    """Let models take each row of a batch for one text, without looking.

    Without a mask transformers reads the positions back from the device, for every pass, to see whether they begin
    anew within a row.
    """
    from transformers import masking_utils

    looks = getattr(masking_utils, "find_packed_sequence_indices", None)
    if looks is None:
        yield
        return
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looks


# -- transformers: models ---------------------------------------------------------------------------------------------


def layer_blocks(model: Any) -> frozenset[str]:
    """Names of the module classes that must not be split over devices, which are a model's layers."""
    return frozenset(getattr(model, "_no_split_modules", None) or ())


def without_quantisation(config: Any) -> Any:
    """The configuration of a model that was dequantised; transformers refuses to save one that still says otherwise."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def without_dropout(model: Any) -> None:
    """Set every dropout probability of a model to 0: modules, and attributes that functions are called with."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Some models call functional dropout with a rate that they keep as an attribute.
        rates = [name for name in vars(module) if name.endswith(("dropout", "pdrop", "layerdrop"))]
        for name in rates:
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)


# What the Trainer says itself, which takes half a second to import.
UNDECAYED = ["bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


def decayed_names(model: Any) -> frozenset[str]:
    """Names of the weights that transformers' Trainer decays: all but biases and the weights of norms."""
    import torch
    from transformers.trainer_pt_utils import get_parameter_names

    return frozenset(get_parameter_names(model, [torch.nn.LayerNorm], UNDECAYED))


def compile_key_patterns() -> None:
    """Let transformers compile the patterns of weight names that it needs before any checkpoint is loaded (60 ms)."""
    # 5.0 has no such module.
    with contextlib.suppress(ImportError, AttributeError):
        conversion = importlib.import_module("transformers.conversion_mapping")
        conversion.get_checkpoint_conversion_mapping("llama")
    importlib.import_module("transformers.models.llama.modeling_llama")


# -- lm-eval ----------------------------------------------------------------------------------------------------------


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """A text's tokens in windows as lm-eval cuts them: (context, continuation) each, scored once."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    return [make_disjoint_window(pair) for pair in get_rolling_token_windows(list(ids), prefix, length, 1)]


# -- operating systems ------------------------------------------------------------------------------------------------


def give_back_memory() -> None:
    """Let the C library return freed blocks. Only glibc has this; it keeps blocks of up to 32 MB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory() -> None:
    """Set this process's peak of resident memory to what it has now, where Linux lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_working_directory, exchange_names = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
    paths = os.fsencode(one), os.fsencode(other)
    return bool(rename(at_working_directory, paths[0], at_working_directory, paths[1], exchange_names) == 0)
