"""A policy from its folders: checked before any library sees them, then loaded without the net."""

import warnings
from pathlib import Path
from typing import Any

from generation.samplers.protocol import PolicySpec
from jobs.run_dir import RunDirError, read_json
from labeling.chat import end_token_ids
from labeling.policy_files import UnsafePolicy, check_policy_dir, policy_digest


def check_policy(policy: PolicySpec) -> None:
    """UnsafePolicy or RunDirError unless the folders are safe and are the policy in the spec."""
    base = Path(policy.model)
    check_policy_dir(base)
    if not (base / "config.json").is_file() or (base / "adapter_config.json").exists():
        # beside a model, the library would load the adapter and whatever base it names
        raise UnsafePolicy(f"{base} must be a model's folder; an adapter's goes under 'adapter'")
    if policy.adapter is not None:
        adapter_rank(policy.adapter)
    _check_digest(policy.folder, policy.digest)
    if policy.base_digest is not None:
        _check_digest(policy.model, policy.base_digest)


def _check_digest(folder: str, wanted: str) -> None:
    digest = policy_digest(Path(folder))
    if digest != wanted:
        raise RunDirError(
            f"{folder} is not the policy that was asked for: its digest is {digest}, the spec says "
            f"{wanted}. Nothing was generated; start a new batch with the right policy"
        )


def adapter_rank(folder: str) -> int:
    """The rank of a LoRA adapter; UnsafePolicy where the folder holds another kind, or code."""
    check_policy_dir(Path(folder))
    config = read_json(Path(folder) / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UnsafePolicy(f"{folder} is not a LoRA adapter, the only kind that is loaded")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UnsafePolicy(f"{folder} names no rank of its adapter")
    return rank


def context_of(policy: PolicySpec) -> int | None:
    """Positions that the policy knows, None where its configuration does not say."""
    config = read_json(Path(policy.model) / "config.json")
    inner = config.get("text_config", config)
    found = inner.get("max_position_embeddings", inner.get("n_positions"))
    return found if isinstance(found, int) else None


def tokenizer_folder(policy: PolicySpec) -> Path:
    """The folder with the policy's own tokenizer (an adapter may bring one), else the model's."""
    own = Path(policy.folder)
    return own if (own / "tokenizer_config.json").is_file() else Path(policy.model)


def load_tokenizer(policy: PolicySpec) -> Any:
    """The policy's tokenizer; RunDirError where it does not load."""
    from transformers import AutoTokenizer

    folder = tokenizer_folder(policy)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library has no common error for a folder it cannot use
        raise RunDirError(f"the tokenizer in {folder} does not load: {error}") from error


def end_ids(policy: PolicySpec, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end a response: the template's, the tokenizer's, and those that the model's
    own configuration names (Llama 3 has several)."""
    found = list(end_token_ids(tokenizer))
    for name in ("generation_config.json", "config.json"):
        path = Path(policy.model) / name
        named = read_json(path).get("eos_token_id") if path.is_file() else None
        found += [named] if isinstance(named, int) else list(named or [])
    return tuple(dict.fromkeys(found))


def load_model(policy: PolicySpec, dtype: str) -> Any:
    """The model in eval mode on the GPU where there is one, its adapter merged.

    Raises RunDirError when the weights do not load or are not all there (the library would make
    up the missing ones), MemoryError when they do not fit.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = _load_base(policy.model)
        if policy.adapter is not None:
            model = _merge_adapter(model, policy.adapter)
        return model.to(dtype=getattr(torch, dtype), device=device).eval()
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"the policy does not fit into the GPU's memory: {error}") from error
    except (RunDirError, MemoryError):
        raise
    except Exception as error:
        raise RunDirError(f"the policy in {policy.model} does not load: {error}") from error


def _load_base(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,  # an adapter is merged before it is rounded to the batch's dtype
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation="sdpa",  # never what config.json names: that can be code from a hub
        output_loading_info=True,
    )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:4])
        raise RunDirError(f"the weights in {folder} are incomplete: {names} and so on are missing")
    return model


def _merge_adapter(model: Any, folder: str) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        return PeftModel.from_pretrained(model, folder, local_files_only=True).merge_and_unload()
