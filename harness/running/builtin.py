"""What the harness itself offers as a plugin: base models by name, and the local executor."""

from __future__ import annotations

from ..plugin.parameters import Value
from ..plugin.specs import ExecutorSpec, ModelSpec

# A model from scratch learns all it knows in fine-tuning, so its rate and epochs are far above a pretrained one's.
TINY_RECIPE: dict[str, Value] = {"learning_rate": 4e-3, "epochs": 12, "batch_size": 16, "schedule": "cosine"}
# A sixteenth of the fine-tuning rate, and the same budget for every method.
TINY_METHODS: dict[str, Value] = {"learning_rate": 2.5e-4, "epochs": 5, "batch_size": 8}
TOFU = ("tofu-forget01", "tofu-forget05", "tofu-forget10")


def unlearnbench_models() -> list[ModelSpec]:
    return [
        ModelSpec(
            "tiny",
            "Llama architecture, under 1 M parameters, trained from scratch in seconds on a CPU",
            prompt_format="plain",
            dtype="float32",
            architecture=dict(layers=2, width=96, heads=4, hidden=192, vocabulary=3072, context=256),
            recipe=TINY_RECIPE,
            method_defaults=TINY_METHODS,
        ),
        ModelSpec(
            "small",
            "Llama architecture, about 6 M parameters, trained from scratch in minutes on a CPU",
            prompt_format="plain",
            architecture=dict(layers=4, width=256, heads=8, hidden=768, vocabulary=8192, context=512),
            recipe={**TINY_RECIPE, "learning_rate": 2e-3, "epochs": 10, "batch_size": 32},
            method_defaults={**TINY_METHODS, "learning_rate": 1.25e-4},
        ),
        ModelSpec(
            "llama2-7b",
            "Llama-2-7B chat with TOFU's published original model",
            path="NousResearch/Llama-2-7b-chat-hf",
            shape=dict(parameters=6.738e9, layers=32, width=4096, inner=11008, vocabulary=32000, key_width=4096),
            prompt_format="llama2",
            original="locuslab/tofu_ft_llama2-7b",
            checkpoints_of=TOFU,
            citation="Touvron et al. 2023, arXiv:2307.09288",
        ),
        ModelSpec(
            "phi-1.5",
            "Phi-1.5 with TOFU's published original model",
            path="microsoft/phi-1_5",
            shape=dict(parameters=1.418e9, layers=24, width=2048, inner=8192, vocabulary=51200, key_width=2048),
            prompt_format="question-answer",
            original="locuslab/tofu_ft_phi-1.5",
            checkpoints_of=TOFU,
            recipe={"learning_rate": 2e-5},
            method_defaults={"learning_rate": 2e-5},
            citation="Li et al. 2023, arXiv:2309.05463",
        ),
        ModelSpec(
            "opt-2.7b",
            "OPT-2.7B; its reference models are fine-tuned here",
            path="facebook/opt-2.7b",
            shape=dict(
                parameters=2.652e9, layers=32, width=2560, inner=10240, vocabulary=50272, key_width=2560, tied=1
            ),
            prompt_format="question-answer",
            allow_pickle=True,  # its repository has no safetensors weights
            recipe={"learning_rate": 2e-5},
            method_defaults={"learning_rate": 2e-5},
            citation="Zhang et al. 2022, arXiv:2205.01068",
        ),
        ModelSpec(
            "llama3.2-1b",
            "Llama-3.2-1B-Instruct with published original and retained models",
            path="meta-llama/Llama-3.2-1B-Instruct",
            shape=dict(parameters=1.236e9, layers=16, width=2048, inner=8192, vocabulary=128256, key_width=512, tied=1),
            prompt_format="chat",
            # As its published checkpoints were trained: configs/model/Llama-3.2-1B-Instruct.yaml of open-unlearning.
            system_prompt="You are a helpful assistant.",
            template_date="2025-04-10",
            original="open-unlearning/tofu_Llama-3.2-1B-Instruct_{split}",
            retained="open-unlearning/tofu_Llama-3.2-1B-Instruct_{split}",
            checkpoints_of=TOFU,
        ),
        ModelSpec(
            "smollm2-135m",
            "SmolLM2-135M-Instruct: the smallest pretrained model here, usable on a CPU",
            path="HuggingFaceTB/SmolLM2-135M-Instruct",
            shape=dict(parameters=1.345e8, layers=30, width=576, inner=1536, vocabulary=49152, key_width=192, tied=1),
            prompt_format="chat",
            citation="Ben Allal et al. 2025, arXiv:2502.02737",
        ),
    ]


def unlearnbench_executors() -> list[ExecutorSpec]:
    return [
        ExecutorSpec(
            "local", "unlearnbench.running.local_executor:LocalExecutor", "a process of its own on this machine"
        ),
        ExecutorSpec("ray", "unlearnbench.running.ray_executor:RayExecutor", "tasks of a Ray cluster"),
        ExecutorSpec("slurm", "unlearnbench.running.slurm_executor:SlurmExecutor", "job arrays of a Slurm cluster"),
    ]
