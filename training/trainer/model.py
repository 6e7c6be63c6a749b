"""Policies as torch modules: safe loading, LoRA, and writing a trained one back to a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from labeling.policy_files import check_policy_dir, policy_digest
from training.trainer.attention import why_padded
from training.trainer.config import PolicySource, Spec, adapter_shape
from training.trainer.parallel import leads, reshard, shard, whole, world
from training.trainer.run_dir import BadInput, combined_digest

SAFELY = {"local_files_only": True, "trust_remote_code": False}
PACK_TOKENS = {"cpu": 1024, "cuda": 16384}  # enough for full-speed products; memory grows with it


@dataclass(frozen=True)
class Policy:
    """A model ready to be scored and trained, and the dtype that it computes in."""

    model: Any  # a transformers causal language model, or a PeftModel around one
    device: torch.device
    dtype: str
    padded_because: str | None  # None: its layers attend to trees
    pack_tokens: int  # of one forward and backward pass

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Within, matrix products run in bfloat16 if the spec says so; weights stay as loaded."""
        mixed = self.dtype == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            yield

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt's responses branch off one copy of it."""
        return self.padded_because is None

    @property
    def base(self) -> Any:
        """The transformers model itself."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def head_weight(self) -> torch.nn.Parameter:
        """(V, h) of the language-model head."""
        weight: torch.nn.Parameter = self.model.get_output_embeddings().weight
        return weight

    @property
    def head_dtype(self) -> torch.dtype:
        """What the head multiplies in: a CPU's bfloat16 products would round their sums too."""
        half = self.dtype == "bfloat16" and self.device.type == "cuda"
        return torch.bfloat16 if half else torch.float32

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name; tied weights are there once."""
        reshard(self.base)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def pick_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def source_digest(source: PolicySource) -> str:
    """One digest for all weights that a source names."""
    adapter = None if source.adapter is None else policy_digest(Path(source.adapter))
    return combined_digest(policy_digest(Path(source.model)), adapter)


def check_source(source: PolicySource) -> None:
    """UnsafePolicy or RunDirError unless both folders may be loaded."""
    for folder in source.folders:
        check_policy_dir(folder)
    if source.adapter is not None:
        adapter_shape(Path(source.adapter))


def load_tokenizer(source: PolicySource) -> Any:
    """The adapter's own tokenizer where it has one, else the model's."""
    check_source(source)
    folder = [f for f in source.folders if (f / "tokenizer_config.json").exists()]
    try:
        return AutoTokenizer.from_pretrained(folder[-1] if folder else source.model, **SAFELY)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"the tokenizer of {source.model} cannot be loaded: {error}") from error


def check_same_vocabulary(policy: Any, reference: PolicySource) -> None:
    """A reference that reads other token ids would answer about other texts."""
    if load_tokenizer(reference).get_vocab() != policy.get_vocab():
        raise BadInput(
            f"the reference {reference.model} has another vocabulary than the policy; "
            "choose a reference with the same tokenizer"
        )


def load_policy(spec: Spec) -> Policy:
    """The policy at its start, as it is trained."""
    return _ready(_trainable(spec), spec)


def _trainable(spec: Spec) -> Any:
    """Full weights, or LoRA on top of frozen ones.

    LoRA goes on in the adapter that the policy has; full training merges it first.
    """
    policy = _load(spec.policy, spec, trained=True)
    if spec.method == "full":
        merged = policy.merge_and_unload() if isinstance(policy, PeftModel) else policy
        return merged.requires_grad_(True)
    if isinstance(policy, PeftModel):
        _check_shape(spec)
        return policy
    torch.manual_seed(spec.seed)
    return get_peft_model(policy, lora_config(spec))


def load_reference(spec: Spec) -> Policy:
    """A frozen copy of the reference, computing in the same dtype as the policy."""
    return _ready(_load(spec.reference, spec, trained=False).requires_grad_(False), spec)


def lora_config(spec: Spec) -> LoraConfig:
    """LoRA on every linear layer but the head; no dropout, which would move the reference."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def _check_shape(spec: Spec) -> None:
    shape = adapter_shape(Path(spec.policy.adapter or ""))
    if shape != (spec.lora_rank, spec.lora_alpha):
        raise BadInput(
            f"the policy's adapter has lora_rank {shape[0]} and lora_alpha {shape[1]}, and "
            f"training goes on in it; the spec says {spec.lora_rank} and {spec.lora_alpha}"
        )


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The layers that are sharded, compiled and recomputed one by one: transformers marks them."""
    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _ready(model: Any, spec: Spec) -> Policy:
    """Evaluation mode throughout: no dropout, in training too; gradients do not depend on it."""
    device = pick_device()
    layers = decoder_layers(model)
    for layer in layers:
        if spec.activation_checkpointing:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if spec.compile:
            layer.compile(dynamic=True)
    if device.type == "cpu" and spec.method == "full" and world() == 1:
        model.get_input_embeddings().sparse = True  # its gradient adds to .grad where tokens are
    why = why_padded(model, spec.max_length)
    shard(model.get_base_model() if isinstance(model, PeftModel) else model, layers)
    return Policy(
        model.to(device).eval(),
        device,
        spec.dtype,
        padded_because=why,
        pack_tokens=spec.pack_tokens or PACK_TOKENS[device.type],
    )


def _load(source: PolicySource, spec: Spec, *, trained: bool) -> Any:
    """Weights that full training changes are fp32; frozen ones are in the spec's dtype."""
    check_source(source)
    frozen = spec.method == "lora"
    weights = torch.bfloat16 if frozen and spec.dtype == "bfloat16" else torch.float32
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.model, dtype=weights, use_safetensors=True, output_loading_info=True, **SAFELY
        )
        _check_complete(source, info)
        if source.adapter is not None:
            model = PeftModel.from_pretrained(model, source.adapter, is_trainable=trained)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BadInput(f"{source.model} cannot be loaded: {error}") from error
    return model


def _check_complete(source: PolicySource, info: dict[str, Any]) -> None:
    """Weights that the folder lacks would be made up at random."""
    lacking = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    if lacking:
        raise BadInput(f"{source.model} lacks weights of its model: {', '.join(lacking[:5])}")


def check_fits(policy: Policy, tokenizer: Any, longest: int) -> None:
    """BadInput where the data has more positions or tokens than the model knows."""
    config = policy.model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise BadInput(
            f"the longest pair has {longest} tokens, the model knows {positions} positions; "
            f"set max_length to {positions} or less and longer pairs are dropped and counted"
        )
    if len(tokenizer) > policy.model.get_input_embeddings().num_embeddings:
        raise BadInput("the tokenizer has more tokens than the model has embeddings")


def export(policy: Policy, spec: Spec, tokenizer: Any, folder: Path, card: str) -> None:
    """Write the policy as a folder that other programs load: safetensors, tokenizer, card.

    A LoRA policy is written as its adapter, or merged into its model. Full weights are stored in
    the dtype they computed in, which is the one they were evaluated in.
    """
    model = _put_together(policy, spec)
    if not leads():
        return
    if isinstance(model, PeftModel) and spec.lora_export == "merged":
        model = model.float().merge_and_unload()
    if isinstance(model, PeftModel):
        targets = model.active_peft_config.target_modules
        model.active_peft_config.target_modules = sorted(targets)  # a set has no order to digest
    else:
        model = model.to(torch.bfloat16 if policy.dtype == "bfloat16" else torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    check_policy_dir(folder)


def _put_together(policy: Policy, spec: Spec) -> Any:
    """The model in one piece: where it is sharded, a fresh one that takes the whole weights."""
    if world() == 1:
        return policy.model
    weights = {name: whole(p.detach()).cpu() for name, p in policy.trainable().items()}
    if not leads():
        return None
    fresh = _trainable(spec)
    fresh.load_state_dict(weights, strict=False)
    return fresh
