"""What named models are called on the hub: OWNER/NAME, of files that describe the named model.

Fine-tuned copies whose file is the same, but for tokens that end a sequence, may stand beside the
original; nothing is looked up on the hub itself.
"""

from collections.abc import Mapping
from types import MappingProxyType

#: By the name in `zoo.NAMED`; the first is the one to suggest.
HUB_IDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M"),
        "smollm3-3b": ("HuggingFaceTB/SmolLM3-3B",),
        "llama-3.1-8b": (
            "meta-llama/Llama-3.1-8B",
            "meta-llama/Meta-Llama-3.1-8B",
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B-Instruct",
        ),
        "llama-2-70b": ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
        "llama-3.1-70b": (
            "meta-llama/Llama-3.1-70B",
            "meta-llama/Meta-Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct",
            "meta-llama/Meta-Llama-3.1-70B-Instruct",
        ),
        "llama-3.3-70b": ("meta-llama/Llama-3.3-70B-Instruct",),
        "llama-3.1-405b": (
            "meta-llama/Llama-3.1-405B",
            "meta-llama/Meta-Llama-3.1-405B",
            "meta-llama/Llama-3.1-405B-Instruct",
            "meta-llama/Meta-Llama-3.1-405B-Instruct",
        ),
        "llama-4-scout": ("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
        "llama-4-maverick": ("meta-llama/Llama-4-Maverick-17B-128E-Instruct",),
        "gemma-3-27b": ("google/gemma-3-27b-it",),
        "gemma-4-26b-a4b": ("google/gemma-4-26B-A4B",),
        "gemma-4-31b": ("google/gemma-4-31B-it",),
        "mistral-7b": ("mistralai/Mistral-7B-v0.1",),
        "mixtral-8x7b": ("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        "mixtral-8x22b": ("mistralai/Mixtral-8x22B-v0.1",),
        "phi-4": ("microsoft/phi-4",),
        "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct",),
        "qwen2.5-72b": ("Qwen/Qwen2.5-72B-Instruct",),
        "qwen3-32b": ("Qwen/Qwen3-32B",),
        "qwen3-235b-a22b": ("Qwen/Qwen3-235B-A22B",),
        "qwen3-next-80b-a3b": ("Qwen/Qwen3-Next-80B-A3B-Instruct",),
        "qwen3.5-397b-a17b": ("Qwen/Qwen3.5-397B-A17B",),
        "nemotron-h-56b": ("nvidia/Nemotron-H-56B-Base-8K",),
        "nemotron-3-nano-30b-a3b": ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",),
        "nemotron-3-super-120b-a12b": ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8",),
        "nemotron-3-ultra-550b-a55b": ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",),
        "gpt-oss-20b": ("openai/gpt-oss-20b",),
        "gpt-oss-120b": ("openai/gpt-oss-120b",),
        "minimax-m2.5": ("MiniMaxAI/MiniMax-M2.5",),
        "minimax-m3": ("MiniMaxAI/MiniMax-M3",),
        "glm-4.5": ("zai-org/GLM-4.5",),
        "glm-4.6": ("zai-org/GLM-4.6",),
        "glm-5": ("zai-org/GLM-5", "zai-org/GLM-5.1"),
        "glm-5.2": ("zai-org/GLM-5.2", "zai-org/GLM-5.3"),
        "deepseek-v3": ("deepseek-ai/DeepSeek-V3",),
        "deepseek-v3.2": ("deepseek-ai/DeepSeek-V3.2",),
        "deepseek-r1": ("deepseek-ai/DeepSeek-R1",),
        "kimi-k2": ("moonshotai/Kimi-K2-Instruct",),
        "kimi-k2-thinking": ("moonshotai/Kimi-K2-Thinking",),
        "kimi-k2.5": ("moonshotai/Kimi-K2.5",),
        "kimi-k3": ("moonshotai/Kimi-K3",),
        "kimi-linear-48b-a3b": ("moonshotai/Kimi-Linear-48B-A3B-Instruct",),
        "ling-3.0-flash": ("inclusionAI/Ling-3.0-Flash",),
        "ling-1t": ("inclusionAI/Ling-1T",),
    }
)

#: Names by id in lower case.
NAMES: Mapping[str, str] = MappingProxyType(
    {id_.lower(): name for name, ids in HUB_IDS.items() for id_ in ids}
)
