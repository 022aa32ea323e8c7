"""Small random causal language models, one of each architecture: ``ARCHITECTURES[name]()``.

They are in float32 and evaluation mode, with a vocabulary of 112 and a width of 32. Lengths special to an architecture
are small, so that rows of 3 to 80 tokens go beyond them: windows of 8, original rope lengths of 16, chunks of 16.
xLSTM is left out: at these sizes its own forward pass fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

V, D, CONTEXT, WINDOW, ORIGINAL = 112, 32, 256, 8, 16
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": V - 1}
SMALL = dict(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=CONTEXT,
    **TOKENS,
)
GROUPED = dict(SMALL, num_key_value_heads=2)
MOE = dict(num_experts_per_tok=2)
# DeepSeek's attention on compressed keys and values, and its groups of experts.
LATENT = dict(
    num_key_value_heads=4,
    moe_intermediate_size=16,
    n_routed_experts=4,
    n_group=2,
    topk_group=1,
    kv_lora_rank=8,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=8,
    first_k_dense_replace=1,
)
SLIDING, FULL = "sliding_attention", "full_attention"


def _shaken(model: Any, scale: float = 1.0) -> PreTrainedModel:
    """Weights so large that every position matters; what a scan needs (A, D, dt, decay) stays as initialised."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            kind = type(module).__name__
            own = dict(module.named_parameters(recurse=False))
            for name, weight in own.items():
                if not weight.is_floating_point():
                    continue
                noise = torch.randn(weight.shape, generator=generator)
                if kind.endswith("Embedding") and name == "weight":
                    weight.copy_(0.5 * noise)
                elif (kind.endswith("Linear") or kind == "Conv1D") and name == "weight":
                    weight.copy_(scale * 1.4 * noise / weight.shape[0 if kind == "Conv1D" else 1] ** 0.5)
                elif kind == "Linear" and name == "bias" and "dt" not in kind:
                    weight.add_(0.1 * noise)
                elif weight.ndim == 3 and kind != "Conv1d" and weight.shape[-1] > 1 and weight.shape[-2] > 1:  # experts
                    weight.copy_(scale * 1.4 * noise / min(weight.shape[1:]) ** 0.5)
                elif name == "sinks":
                    weight.copy_(noise)
    for name, module in model.named_modules():  # Mamba's step sizes are made by a Linear layer: keep them moderate
        if name.endswith("dt_proj") and getattr(module, "weight", None) is not None:
            module.weight.data.mul_(0.3)
    model.tie_weights()
    return model.eval()


def _made(config: Any, cls: Any = None, scale: float = 1.0) -> PreTrainedModel:
    # A tied head repeats what it has just read, so that generation would show little.
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    torch.manual_seed(0)
    model = cls(config) if cls else AutoModelForCausalLM.from_config(config)
    model = model.to(torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.bos_token_id = 1
    model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    return _shaken(model, scale)


def _cfg(name: str, *bases: dict[str, Any], cls: str = "", scale: float = 1.0, **more: Any) -> Callable[[], Any]:
    def build() -> PreTrainedModel:
        if not hasattr(transformers, name):
            pytest.skip(f"transformers {transformers.__version__} has no {name}")
        options: dict[str, Any] = {}
        for base in (*bases, more):
            options |= base
        return _made(getattr(transformers, name)(**options), getattr(transformers, cls) if cls else None, scale)

    return build


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def _longrope(factors: int) -> dict[str, Any]:
    return _rope(
        "longrope",
        original_max_position_embeddings=ORIGINAL,
        factor=CONTEXT / ORIGINAL,
        short_factor=[1.0] * factors,
        long_factor=[2.0 + 2 * i for i in range(factors)],
    )


def _gemma3_multimodal() -> PreTrainedModel:
    text = dict(GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=[SLIDING, FULL])
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=V - 4,
        eoi_token_index=V - 3,
        image_token_index=V - 2,
        **{k: v for k, v in TOKENS.items()},
    )
    return _made(config)


def _bert(name: str, cls: str) -> Callable[[], PreTrainedModel]:
    more = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": V - 1} if "Roberta" in name else {}
    return _cfg(name, SMALL, more, cls=cls, is_decoder=True, max_position_embeddings=CONTEXT + 2)


_llama = lambda **more: _cfg("LlamaConfig", GROUPED, **more)  # noqa: E731

# fmt: off
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    # -- rotary
    "llama": _llama(),
    "llama-linear": _llama(**_rope("linear", factor=4.0)),
    "llama-dynamic": _llama(**_rope("dynamic", factor=4.0), max_position_embeddings=ORIGINAL),
    "llama-yarn": _llama(**_rope("yarn", factor=16.0, original_max_position_embeddings=ORIGINAL)),
    "llama-llama3": _llama(
        **_rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=ORIGINAL
        )
    ),
    "llama-longrope": _llama(**_longrope(4)),
    "mistral-window": _cfg("MistralConfig", GROUPED, sliding_window=WINDOW),
    "mixtral": _cfg("MixtralConfig", GROUPED, MOE, num_local_experts=4, sliding_window=None),
    "mixtral-window": _cfg("MixtralConfig", GROUPED, MOE, num_local_experts=4, sliding_window=WINDOW),
    "qwen2": _cfg("Qwen2Config", GROUPED),
    "qwen2-window": _cfg("Qwen2Config", GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2-moe": _cfg(
        "Qwen2MoeConfig", GROUPED, MOE, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=32
    ),
    "qwen3": _cfg("Qwen3Config", GROUPED, head_dim=8),
    "qwen3-moe": _cfg("Qwen3MoeConfig", GROUPED, MOE, head_dim=8, num_experts=4, moe_intermediate_size=16),
    "gemma": _cfg("GemmaConfig", GROUPED, head_dim=8),
    "gemma2": _cfg(
        "Gemma2Config",
        GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
        layer_types=[SLIDING, FULL],
    ),
    "gemma3-text": _cfg(
        "Gemma3TextConfig",
        GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=[SLIDING, FULL],
    ),
    "gemma3-multimodal": _gemma3_multimodal,
    "phi": _cfg("PhiConfig", SMALL),
    "phi3-longrope": _cfg("Phi3Config", GROUPED, original_max_position_embeddings=ORIGINAL, **_longrope(4)),
    "stablelm": _cfg("StableLmConfig", GROUPED),
    "starcoder2-window": _cfg("Starcoder2Config", GROUPED, sliding_window=WINDOW),
    "cohere": _cfg("CohereConfig", GROUPED),
    "cohere2-window": _cfg("Cohere2Config", GROUPED, sliding_window=WINDOW, layer_types=[SLIDING, FULL]),
    "olmo": _cfg("OlmoConfig", GROUPED),
    "olmo2": _cfg("Olmo2Config", GROUPED),
    "olmo3-window": _cfg("Olmo3Config", GROUPED, sliding_window=WINDOW, layer_types=[SLIDING, FULL]),
    "olmoe": _cfg("OlmoeConfig", GROUPED, MOE, num_experts=4),
    "granite": _cfg("GraniteConfig", GROUPED, logits_scaling=2.0, residual_multiplier=0.7, attention_multiplier=0.3),
    "granitemoe": _cfg("GraniteMoeConfig", GROUPED, MOE, num_local_experts=4),
    "nemotron": _cfg("NemotronConfig", GROUPED),
    "glm4": _cfg("Glm4Config", GROUPED, head_dim=8),
    "smollm3": _cfg("SmolLM3Config", GROUPED, no_rope_layers=[1, 0]),
    "exaone4-window": _cfg(
        "Exaone4Config", GROUPED, sliding_window=WINDOW, sliding_window_pattern=2, layer_types=[SLIDING, FULL]
    ),
    "ministral-window": _cfg(
        "MinistralConfig", GROUPED, head_dim=8, sliding_window=WINDOW, layer_types=[SLIDING, FULL]
    ),
    "gpt-oss": _cfg(
        "GptOssConfig",
        GROUPED,
        MOE,
        head_dim=8,
        num_local_experts=4,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL],
        **_rope("default"),
    ),
    "deepseek-v3": _cfg("DeepseekV3Config", SMALL, MOE, LATENT),
    "llama4-text": _cfg(
        "Llama4TextConfig",
        GROUPED,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=16,
        floor_scale=16,
        no_rope_layers=[1, 0],
        interleave_moe_layer_step=2,
    ),
    "diffllama": _cfg("DiffLlamaConfig", GROUPED),
    # -- older decoders
    "gpt2": _cfg("GPT2Config", TOKENS, vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT),
    "openai-gpt": _cfg("OpenAIGPTConfig", TOKENS, vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT),
    "gpt-neo-window": _cfg(
        "GPTNeoConfig",
        TOKENS,
        vocab_size=V,
        hidden_size=D,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        window_size=WINDOW,
        attention_types=[[["local", "global"], 1]],
    ),
    "gpt-neox": _cfg("GPTNeoXConfig", SMALL),
    "gptj": _cfg("GPTJConfig", TOKENS, vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT, rotary_dim=4),
    "codegen": _cfg(
        "CodeGenConfig",
        TOKENS,
        vocab_size=V,
        n_embd=D,
        n_layer=2,
        n_head=4,
        n_positions=CONTEXT,
        n_ctx=CONTEXT,
        rotary_dim=4,
    ),
    "opt": _cfg("OPTConfig", SMALL, ffn_dim=64, word_embed_proj_dim=D),
    "bloom": _cfg("BloomConfig", TOKENS, vocab_size=V, hidden_size=D, n_layer=2, n_head=4),
    "falcon-alibi": _cfg(
        "FalconConfig", SMALL, ffn_hidden_size=64, alibi=True, multi_query=True, new_decoder_architecture=False
    ),
    "falcon-rotary": _cfg(
        "FalconConfig", SMALL, ffn_hidden_size=64, alibi=False, num_kv_heads=2, new_decoder_architecture=True
    ),
    "mpt": _cfg(
        "MptConfig", TOKENS, vocab_size=V, d_model=D, n_layers=2, n_heads=4, max_seq_len=CONTEXT, expansion_ratio=2
    ),
    "gpt-bigcode": _cfg("GPTBigCodeConfig", TOKENS, vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=CONTEXT),
    "xglm": _cfg(
        "XGLMConfig",
        TOKENS,
        vocab_size=V,
        d_model=D,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=CONTEXT,
    ),
    "biogpt": _cfg("BioGptConfig", SMALL, pad_token_id=1, bos_token_id=0),
    "roberta-decoder": _bert("RobertaConfig", "RobertaForCausalLM"),
    "bert-decoder": _bert("BertConfig", "BertLMHeadModel"),
    "xlnet": _cfg(
        "XLNetConfig",
        vocab_size=V,
        d_model=D,
        n_layer=2,
        n_head=4,
        d_inner=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=V - 1,
    ),
    # -- with a state
    "qwen3-next": _cfg(
        "Qwen3NextConfig",
        GROUPED,
        MOE,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        layer_types=["linear_attention", FULL],
    ),
    "mamba": _cfg("MambaConfig", TOKENS, vocab_size=V, hidden_size=D, num_hidden_layers=2, state_size=8),
    "mamba2": _cfg(
        "Mamba2Config",
        TOKENS,
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
    ),
    "falcon-mamba": _cfg("FalconMambaConfig", TOKENS, vocab_size=V, hidden_size=D, num_hidden_layers=2, state_size=8),
    "rwkv": _cfg("RwkvConfig", TOKENS, vocab_size=V, hidden_size=D, num_hidden_layers=2, context_length=CONTEXT),
    "jamba": _cfg(
        "JambaConfig",
        GROUPED,
        MOE,
        num_hidden_layers=4,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "zamba2": _cfg(
        "Zamba2Config",
        GROUPED,
        num_hidden_layers=4,
        num_key_value_heads=4,
        mamba_d_state=8,
        mamba_ngroups=2,
        n_mamba_heads=8,
        chunk_size=16,
        use_mamba_kernels=False,
        num_mem_blocks=1,
        use_mem_rope=True,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
    ),
    "bamba": _cfg(
        "BambaConfig",
        GROUPED,
        num_hidden_layers=2,
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_chunk_size=16,
    ),
    "falcon-h1": _cfg(
        "FalconH1Config",
        GROUPED,
        mamba_d_ssm=64,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_chunk_size=16,
    ),
    "lfm2": _cfg("Lfm2Config", GROUPED, layer_types=["conv", FULL], block_auto_adjust_ff_dim=False),
    "recurrent-gemma": _cfg(
        "RecurrentGemmaConfig",
        GROUPED,
        num_hidden_layers=3,
        attention_window_size=WINDOW,
        num_key_value_heads=1,
        lru_width=D,
        w_init_variance_scale=1.0,
    ),
    "granitemoe-hybrid": _cfg(
        "GraniteMoeHybridConfig",
        GROUPED,
        MOE,
        num_local_experts=4,
        shared_intermediate_size=16,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_chunk_size=16,
        layer_types=["mamba", "attention"],
    ),
    # -- others, some with lengths that a dozen tokens do not reach
    "gpt-neo-window-20": _cfg(
        "GPTNeoConfig",
        TOKENS,
        vocab_size=V,
        hidden_size=D,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        window_size=20,
        attention_types=[[["local", "global"], 1]],
    ),
    "llama4-text-temperature": _cfg(
        "Llama4TextConfig",
        GROUPED,
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=CONTEXT,
        floor_scale=4,
        attn_scale=1.0,
        no_rope_layers=[1, 0],
        interleave_moe_layer_step=2,
    ),
    "nemotron-h": _cfg(
        "NemotronHConfig",
        GROUPED,
        head_dim=8,
        layers_block_type=["mamba", "attention", "mlp"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=2,
        chunk_size=16,
    ),
    "minimax": _cfg(
        "MiniMaxConfig",
        GROUPED,
        MOE,
        head_dim=8,
        num_local_experts=4,
        block_size=16,
        layer_types=["linear_attention", FULL],
    ),
    "modernbert-decoder": _cfg(
        "ModernBertDecoderConfig",
        SMALL,
        local_attention=WINDOW,
        layer_types=[SLIDING, FULL],
        cls_token_id=1,
        sep_token_id=2,
    ),
    "gemma3n": _cfg(
        "Gemma3nTextConfig",
        GROUPED,
        head_dim=8,
        vocab_size_per_layer_input=V,
        hidden_size_per_layer_input=8,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL],
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "gemma4-text": _cfg(
        "Gemma4TextConfig",
        GROUPED,
        head_dim=8,
        global_head_dim=8,
        vocab_size_per_layer_input=V,
        hidden_size_per_layer_input=8,
        sliding_window=WINDOW,
        layer_types=[SLIDING, FULL],
        num_kv_shared_layers=0,
    ),
    "kimi-linear": _cfg(
        "KimiLinearConfig",
        SMALL,
        MOE,
        num_key_value_heads=4,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=16,
        num_local_experts=4,
        linear_head_dim=8,
        linear_num_heads=4,
        layer_types=["linear_attention", FULL],
        mlp_layer_types=["dense", "sparse"],
    ),
    "deepseek-v2": _cfg("DeepseekV2Config", SMALL, MOE, LATENT, topk_method="greedy"),
    "helium": _cfg("HeliumConfig", GROUPED, head_dim=8),
    "persimmon": _cfg("PersimmonConfig", SMALL),
    "olmo-hybrid": _cfg(
        "OlmoHybridConfig",
        GROUPED,
        layer_types=["linear_attention", FULL],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=4,
        linear_num_value_heads=4,
    ),
    "lfm2-moe": _cfg(
        "Lfm2MoeConfig",
        GROUPED,
        MOE,
        layer_types=["conv", FULL],
        moe_intermediate_size=16,
        num_experts=4,
        num_dense_layers=1,
    ),
    "doge": _cfg("DogeConfig", GROUPED, keep_window_size=CONTEXT),
    "ctrl": _cfg("CTRLConfig", TOKENS, vocab_size=V, n_embd=D, n_layer=2, n_head=4, dff=64, n_positions=CONTEXT),
    "bart-decoder": _cfg(
        "BartConfig",
        TOKENS,
        cls="BartForCausalLM",
        vocab_size=V,
        d_model=D,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        max_position_embeddings=CONTEXT,
    ),
    "jetmoe": _cfg("JetMoeConfig", SMALL, MOE, kv_channels=8, num_key_value_heads=2, num_local_experts=4),
    "dbrx": _cfg(
        "DbrxConfig",
        TOKENS,
        vocab_size=V,
        d_model=D,
        n_layers=2,
        n_heads=4,
        max_seq_len=CONTEXT,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": D},
    ),
    "zamba": _cfg(
        "ZambaConfig",
        GROUPED,
        num_hidden_layers=4,
        num_key_value_heads=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        n_mamba_heads=2,
        use_mamba_kernels=False,
    ),
    "qwen3.5-text": _cfg(
        "Qwen3_5TextConfig",
        GROUPED,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        layer_types=["linear_attention", FULL],
    ),
    "apertus": _cfg("ApertusConfig", GROUPED),
}
