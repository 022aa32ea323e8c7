"""Base models, their tokenizers, and the two reference models of a benchmark: trained once, then cached."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from .._compat import without_quantisation
from ..contracts import Context, UnlearningData, derived_seed
from ..data.encoder import Encoder
from ..data.model_folder import REFERENCE, is_pointer
from ..data.prompts import ChatFormat, PromptFormat, prompt_format
from ..domain import Example, Requires
from ..engine.numerics import cast
from ..errors import Diverged, ModelError
from ..plugin.specs import ModelSpec
from ..storage import as_storage_error, file_digest, shared_modes, write_sealed
from .loss_method import FineTune


def make_encoder(spec: ModelSpec, corpus: Iterable[str]) -> Encoder:
    """The encoder of a base model; a model from scratch gets a byte-level BPE vocabulary built from ``corpus``."""
    if spec.architecture:
        tokenizer = _bpe(corpus, spec.architecture["vocabulary"])
        return Encoder(tokenizer, _style(spec, tokenizer, []), spec.architecture["context"])
    return _encoder(spec, spec.path, _where(spec))


def saved_encoder(spec: ModelSpec, folder: str, revision: str = "") -> Encoder:
    """The encoder that was saved with a model (a folder of the cache, or a published checkpoint)."""
    return _encoder(spec, folder, _published(spec, revision))


def _encoder(spec: ModelSpec, path: str, where: dict[str, Any]) -> Encoder:
    with _explained(path):
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
        config = AutoConfig.from_pretrained(path, **where).get_text_config()
    notes = complete_special_tokens(tokenizer)
    context = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2**31)
    ends = _model_ends(path, config, tokenizer, where, notes)
    # An EOS that had to be made stands behind the vocabulary, and the embedding grows by it.
    vocabulary = max(int(getattr(config, "vocab_size", 0)) or 2**31, int(tokenizer.eos_token_id) + 1)
    return Encoder(tokenizer, _style(spec, tokenizer, notes), context, notes, ends, vocabulary)


def _style(spec: ModelSpec, tokenizer: Any, notes: list[str]) -> PromptFormat:
    """The prompt format of a model; ``notes`` says where a chat template writes a date."""
    chat = {"system_prompt": spec.system_prompt, "date": spec.template_date, "enable_thinking": spec.enable_thinking}
    style = prompt_format(spec.prompt_format, tokenizer, chat)
    if isinstance(style, ChatFormat) and style.writes_date(tokenizer):
        notes.append(f"the chat template writes a date, which is {style.date} on every day (template_date)")
    return style


def _model_ends(path: str, config: Any, tokenizer: Any, where: Mapping[str, Any], notes: list[str]) -> list[int]:
    """The tokens that end a text by the model's own ``generation_config``, or its configuration where it has none.

    An id that is an ordinary word of the tokenizer's (a configuration's default, often) ends nothing.
    """
    named = config.eos_token_id if hasattr(config, "eos_token_id") else None
    with suppress(OSError):
        revision = {"revision": where["revision"]} if "revision" in where else {}
        named = GenerationConfig.from_pretrained(path, **revision).eos_token_id
    ends = [] if named is None else [named] if isinstance(named, int) else list(named)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in ends:
        if token not in special:
            notes.append(
                f"the model's configuration ends texts with token {token}, which is an ordinary one and does not"
            )
    return [token for token in ends if token in special]


def complete_special_tokens(tokenizer: Any) -> list[str]:
    """Give a tokenizer the EOS and pad tokens that it lacks; returns what was made, in words."""
    made = []
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": "<|end|>"})
        made.append(f"the tokenizer has no EOS; made {tokenizer.eos_token!r} (id {tokenizer.eos_token_id})")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        made.append(f"the tokenizer has no pad token; using {tokenizer.pad_token!r}")
    return made


def load_base(spec: ModelSpec, encoder: Encoder, seed: int, notes: list[str] | None = None) -> Any:
    """The base model in float32, on the CPU; from scratch its weights come from ``seed``.

    Args:
        notes: with ``allow_missing_weights``, a line is added that names the weights that do not fit.

    Raises:
        ModelError: no weights, broken ones, ones that do not fit the architecture, or pickle weights without
            ``allow_pickle``.
    """
    if spec.architecture:
        return _from_scratch(spec.architecture, encoder, seed)
    model = _load(spec.path, spec, notes, **_where(spec))
    if spec.gguf_file:
        model = _plain(model)
    _fit_vocabulary(model, encoder)
    return model


def load_checkpoint(
    folder: str,
    spec: ModelSpec,
    revision: str = "",
    notes: list[str] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """A reference model, in float32, on a device. ``notes`` and errors as for ``load_base``.

    Weights go to a GPU one after another: a CPU never holds them all, which are 27 GB at 7B.
    """
    placed = {} if torch.device(device).type == "cpu" else {"device_map": {"": torch.device(device)}}
    return _load(folder, spec, notes, **placed, **_published(spec, revision))


def fine_tune(model: Any, encoder: Encoder, rows: Sequence[Example], recipe: Mapping[str, Any], ctx: Context) -> Any:
    """Fine-tune on ``rows`` with the same loop that methods use."""
    data = UnlearningData("fine-tune", Requires(), encoder, rows, (), ())
    trained = FineTune(**recipe).unlearn(model, encoder.tokenizer, data, ctx)
    check_finite(trained)
    return trained


def check_finite(model: Any, untrained: str = "") -> None:
    """Raise where a weight is NaN or infinite.

    Raises:
        Diverged: of a model that was trained.
        ModelError: of one that was loaded; ``untrained`` says which.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            if untrained:
                raise ModelError(f"{untrained}: {name} is not finite; the checkpoint is damaged, copy it again")
            raise Diverged(f"the weights of {name} are not finite")


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, facts: Mapping[str, Any] | None = None) -> None:
    """Model and tokenizer in a folder that is either whole or absent; with ``facts`` and every file's hash beside."""
    temporary = ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if facts is not None:
            written = {path.name: file_digest(path) for path in sorted(Path(temporary).iterdir()) if path.is_file()}
            write_sealed(Path(temporary) / REFERENCE, {**facts, "files": written})
        shared_modes(Path(temporary))
        if folder.exists():
            # A damaged one. Whoever reads it has its files until it is done with them.
            os.rename(folder, f"{temporary}.old")
        os.replace(temporary, folder)
    except OSError as error:
        raise as_storage_error(error, folder) from error
    except Exception as error:
        # safetensors reports a full disk as an error of its own, with the system's words inside.
        if "No space left" in str(error):
            raise as_storage_error(OSError(28, "No space left on device"), folder) from error
        raise
    finally:
        for left in (temporary, f"{temporary}.old") if temporary else ():
            shutil.rmtree(left, ignore_errors=True)


def with_adapter(model: Any, rank: int) -> Any:
    """The model with a LoRA adapter on its linear layers (Hu et al. 2021, arXiv:2106.09685), alpha = 2 rank."""
    try:
        import peft
    except ImportError as error:
        raise ModelError("lora_rank needs the package peft: pip install 'unlearnbench[peft]'") from error
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def frozen_copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy in evaluation mode, in the precision of forward passes, whose weights take no gradient."""
    return cast(copy.deepcopy(model), dtype).eval().requires_grad_(False)


def compute_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, float32 elsewhere."""
    if spec.dtype != "auto":
        named: torch.dtype = getattr(torch, spec.dtype)
        return named
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def _bpe(corpus: Iterable[str], size: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # A merge seen twice is worth having, which the trainer's default (0 = no bound) would also take once.
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


def _from_scratch(sizes: Mapping[str, int], encoder: Encoder, seed: int) -> Any:
    config = LlamaConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=sizes["width"],
        intermediate_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["context"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=encoder.tokenizer.eos_token_id,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "base model"))
        return LlamaForCausalLM(config)


def _published(spec: ModelSpec, revision: str) -> dict[str, Any]:
    where: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    return {**where, "revision": revision} if revision else where


def _where(spec: ModelSpec) -> dict[str, Any]:
    where: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.revision:
        where["revision"] = spec.revision
    if spec.gguf_file:
        where["gguf_file"] = spec.gguf_file
    return where


def _load(path: str, spec: ModelSpec, notes: list[str] | None, **where: Any) -> Any:
    with _explained(path):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=None if spec.allow_pickle or spec.gguf_file else True,
            # Sizes that differ are told of below, with the names that differ.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    unfit = _unfit(model, found)
    if unfit and not spec.allow_missing_weights:
        raise ModelError(
            f"the weights of {path!r} do not fit its config.json: {unfit}; name the checkpoint that belongs to it, or "
            f"set models.<name>.allow_missing_weights = true (random weights take their place; rows are not ranked)"
        )
    if unfit and notes is not None:
        notes.append(f"weights do not fit: {unfit}")
    return model


def _unfit(model: Any, found: Mapping[str, Any]) -> str:
    """The tensors that a checkpoint lacks, has too many or has in another size, in words; empty where all fit.

    Tied weights are stored once, which transformers knows; buffers that a checkpoint holds and the model computes anew
    (rotary frequencies, masks) are none too many.
    """
    buffers = {name for name, _ in model.named_buffers()}
    sizes = {key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]}
    kinds = {
        "missing": set(found["missing_keys"]) - sizes,
        "unexpected": set(found["unexpected_keys"]) - buffers,
        "of another size": sizes,
    }
    named = []
    for kind, names in kinds.items():
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            named.append(f"{len(names)} {kind} ({shown})")
    return "; ".join(named)


def _plain(model: Any) -> Any:
    """A model read from GGUF as an ordinary one: transformers refuses to save it otherwise."""
    config = without_quantisation(copy.deepcopy(model.config))
    fresh = type(model)(config).to(torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.generation_config = copy.deepcopy(model.generation_config)
    return fresh


def _fit_vocabulary(model: Any, encoder: Encoder) -> None:
    """Room for an EOS that had to be made; embeddings are never shrunk."""
    if encoder.tokenizer.eos_token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(encoder.tokenizer.eos_token_id + 1)


@contextmanager
def _explained(path: str) -> Any:
    """Loading errors in the user's words, with a remedy."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        remedy = "name a folder or hub id with config.json, a tokenizer and safetensors weights"
        if os.path.isdir(path):
            names = os.listdir(path)
            pointers = [name for name in names if is_pointer(Path(path) / name)]
            has_pickle = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
            if pointers:
                remedy = f"{pointers[0]} is a Git LFS pointer in place of the file; fetch it with: git lfs pull"
            elif "adapter_config.json" in names and "config.json" not in names:
                remedy = "this is a LoRA adapter and not a model; merge it into its base model and save that"
            elif has_pickle and not any(name.endswith(".safetensors") for name in names):
                remedy = "the weights are pickle files, which can run code; set models.<name>.allow_pickle = true"
            elif "safetensors" in type(error).__module__ or "Safetensor" in type(error).__name__:
                remedy = "the safetensors file is truncated or damaged; copy it again"
        raise ModelError(f"cannot load {path!r}: {type(error).__name__}: {text[:300]}; {remedy}") from error
