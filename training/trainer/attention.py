"""Attention over a tree: a response sees its prompt and itself, and no other response.

The function is registered with transformers under the name TREE, so that stock models run it in
place of their own; see `tree_attention` for how a model is switched to it and back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from training.trainer.tree import Tree

TREE = "prefloop_tree"
# Decoders whose every layer is attention through transformers' interface, with nothing between
# the head's product and the softmax. Each is tested against plain forward passes.
TREE_MODELS = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
aten = torch.ops.aten


def why_padded(model: Any, longest: int) -> str | None:
    """Why a model cannot attend to trees of up to `longest` tokens a branch; None if it can."""
    config = model.config
    if config.model_type not in TREE_MODELS:
        return f"{config.model_type} models are not known to attend in a way that shares prompts"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < longest:
        return f"its layers see a sliding window of {window} tokens, below max_length {longest}"
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or getattr(head, "bias", None) is not None:
        return "its language-model head is more than a matrix"
    return None


@contextmanager
def tree_attention(model: Any) -> Iterator[None]:
    """Within, the model's layers attend by the `tree` that its forward is given.

    Backward passes belong inside too: activation checkpointing runs the layers again there.
    """
    config = model.config
    stock = config._attn_implementation
    config._attn_implementation = TREE
    try:
        yield
    finally:
        config._attn_implementation = stock


@torch.compiler.disable  # slices of changing lengths: tracing them would compile for ever
def attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    tree: Tree,
    scaling: float,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """(1, H, T, d) queries, (1, G, T, d) keys and values -> (1, T, H, d), as transformers asks.

    G divides H: with grouped queries, H / G heads share a key.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotations in fp32
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _variable_length(query, key, value, tree, scaling), None
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
    if query.device.type == "cpu":
        out = MergedAttention.apply(query, key, value, tree, scaling)
    else:
        out = _blocks(query, key, value, tree, scaling)
    return out.transpose(1, 2), None


AttentionInterface.register(TREE, attend)


class MergedAttention(torch.autograd.Function):
    """Exact tree attention from PyTorch's flash kernel for CPUs, block by block.

    The prompt with its first response is one causal sequence. The softmax of any other response
    runs over two blocks of keys, its prompt's and its own. Each block gives an output o and the
    logarithm l of its normaliser; together they are
        l = log(e^l1 + e^l2),   o = e^(l1 − l)·o1 + e^(l2 − l)·o2,
    and the kernel's backward pass, given the joint o and l, yields each block's exact share of
    the gradients (as in ring attention: Liu et al. 2023, arXiv:2310.01889). So all of them meet
    their prompt in one call, no key is copied and no masked score is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: Tree, scale: float
    ) -> torch.Tensor:
        out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format)
        out = out.transpose(1, 2)  # (1, H, T, d), laid out as the model reads it next
        log_normaliser = q.new_empty(q.shape[:3], dtype=torch.float32)

        def block(queries: slice, keys: slice, causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
            parts = q[:, :, queries], k[:, :, keys], v[:, :, keys]
            o, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(
                *parts, 0.0, causal, scale=scale
            )
            return o, log_sum

        for span in tree.spans:
            out[:, :, span.trunk], log_normaliser[:, :, span.trunk] = block(
                span.trunk, span.trunk, True
            )
            if not span.others:
                continue
            o1, l1 = block(span.branches, span.prompt, False)
            start = span.branches.start
            for own in span.others:
                o2, l2 = block(own, own, True)
                at = slice(own.start - start, own.stop - start)
                log_normaliser[:, :, own] = torch.logaddexp(l1[:, :, at], l2)
                share = torch.sigmoid(l2 - l1[:, :, at])[..., None].to(o2.dtype)  # e^(l2 − l)
                torch.lerp(o1[:, :, at], o2, share, out=out[:, :, own])
        ctx.save_for_backward(q, k, v, out, log_normaliser)
        ctx.tree, ctx.scale = tree, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, log_normaliser = ctx.saved_tensors
        (grad,) = grads
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))

        def block(queries: slice, keys: slice, causal: bool) -> tuple[torch.Tensor, ...]:
            gradients: tuple[torch.Tensor, ...] = (
                aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad[:, :, queries],
                    q[:, :, queries],
                    k[:, :, keys],
                    v[:, :, keys],
                    out[:, :, queries],
                    log_normaliser[:, :, queries],
                    0.0,
                    causal,
                    scale=ctx.scale,
                )
            )
            return gradients

        for span in ctx.tree.spans:
            trunk, prompt, branches = span.trunk, span.prompt, span.branches
            dq[:, :, trunk], dk[:, :, trunk], dv[:, :, trunk] = block(trunk, trunk, True)
            if not span.others:
                continue
            dq[:, :, branches], from_branches_k, from_branches_v = block(branches, prompt, False)
            dk[:, :, prompt] += from_branches_k
            dv[:, :, prompt] += from_branches_v
            for own in span.others:
                from_own, dk[:, :, own], dv[:, :, own] = block(own, own, True)
                dq[:, :, own] += from_own
        return dq, dk, dv, None, None


def _variable_length(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: Tree, scale: float
) -> torch.Tensor:
    """(1, T, H, d) in one call of the GPU's flash kernel (float16 and bfloat16 only).

    Each response's keys are gathered after its prompt's; the kernel's causal window is aligned
    at the ends, so a response's first query sees the whole prompt and its own first key.
    """
    from torch.nn.attention.varlen import varlen_attn

    rows = tree.sequences
    q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (T, heads, d)
    out: Any = varlen_attn(
        q.contiguous(),
        k[rows.key_rows],
        v[rows.key_rows],
        rows.query_ends,
        rows.key_ends,
        rows.longest_query,
        rows.longest_key,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    attended: torch.Tensor = out[None]
    return attended


def _blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tree: Tree, scale: float
) -> torch.Tensor:
    """(1, H, T, d) by one call of scaled_dot_product_attention for each response, on any device."""
    outs = []
    for span in tree.spans:
        for own in span.responses:
            queries = own if own in span.others else span.trunk
            keys, values = (torch.cat([t[:, :, span.prompt], t[:, :, own]], 2) for t in (k, v))
            mask: Any = causal_lower_right(queries.stop - queries.start, keys.shape[2])
            outs.append(
                functional.scaled_dot_product_attention(
                    q[:, :, queries], keys, values, attn_mask=mask, scale=scale
                )
            )
    return torch.cat(outs, dim=2)
