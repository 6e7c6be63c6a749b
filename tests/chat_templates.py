"""Families of chat templates as test data: each a small template with a tiny tokenizer.

The templates are written for these tests, in the structure that the families share: where BOS
stands, which token ends a turn, what becomes of a system message.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

System = Literal["kept", "left out", "refused"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A way to write conversations, and what must come of it.

    `plain` are added tokens that the tokenizer does not call special. `bos_each_turn`: BOS stands
    before every user's turn. `exact`: a prompt and its response are how the template begins the
    answered conversation.
    """

    template: str
    end: str
    eos: str
    bos: str | None = None
    adds_bos: bool = False
    bos_each_turn: bool = False
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    system: System = "kept"
    exact: bool = True
    metaspace: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens that a person must not be able to feed."""
        named = (self.eos, self.end, *((self.bos,) if self.bos else ()))
        return tuple(dict.fromkeys((*named, *self.special, *self.plain)))


ALTERNATES = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user and assistant') }}{% endif %}{% endfor %}"
)

FAMILIES = {
    "llama2": Family(
        template=ALTERNATES
        + "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' if loop.first and system }}"
        "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}"
        "{% endfor %}",
        end="</s>",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        bos_each_turn=True,
        special=("<unk>",),
        exact=False,
        metaspace=True,
    ),
    "llama3": Family(
        template="{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
        "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }}\n\n{% endif %}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}<|eot_id|>"
        "{% for m in messages if m.role != 'system' %}"
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        end="<|eot_id|>",
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    ),
    "chatml": Family(
        template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        end="<|im_end|>",
        eos="<|endoftext|>",
        special=("<|im_start|>",),
    ),
    "gemma": Family(
        template="{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}"
        + ALTERNATES
        + "{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        end="<end_of_turn>",
        eos="<eos>",
        bos="<bos>",
        adds_bos=True,
        special=("<start_of_turn>", "<pad>"),
        system="refused",
        metaspace=True,
    ),
    "phi3": Family(
        template="{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}",
        end="<|end|>",
        eos="<|endoftext|>",
        bos="<s>",
        special=("<|user|>", "<|system|>", "<|assistant|>"),
        metaspace=True,
    ),
    "mistral": Family(  # a system message becomes part of the last user's turn
        template="{{ bos_token }}"
        + ALTERNATES
        + "{% for m in turns %}{% if m.role == 'user' %}[INST]"
        "{{ messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' }}"
        "{{ m.content }}[/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        end="</s>",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        special=("[INST]", "[/INST]"),
    ),
    "zephyr": Family(  # no BOS in the template, though the policy was trained with one
        template="{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        end="</s>",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        metaspace=True,
    ),
    "deepseek": Family(
        template="{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}"
        "<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        end="<｜end▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        adds_bos=True,
        plain=("<｜User｜>", "<｜Assistant｜>", "<think>"),
        exact=False,
    ),
    "alpaca": Family(  # no special tokens, and a system message is silently lost
        template="{% for m in messages if m.role != 'system' %}"
        "{{ '### Instruction:\n' if m.role == 'user' else '### Response:\n' }}{{ m.content }}\n\n"
        "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}",
        end="</s>",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        system="left out",
        exact=False,
    ),
    "added end": Family(  # fine-tuned by people who added its end token without calling it special
        template="{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        end="<|im_end|>",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        plain=("<|im_start|>", "<|im_end|>"),
    ),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, made once: tests must not change it."""
    return make_tokenizer(FAMILIES[name])


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and a few merges, either byte-level or as SentencePiece's are."""
    core = _metaspace(family) if family.metaspace else _byte_level(family)
    special = [token for token in family.tokens if token not in family.plain]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=family.eos,
        additional_special_tokens=[t for t in special if t not in (family.eos, family.bos)],
        **({"bos_token": family.bos} if family.bos else {}),
    )
    tokenizer.add_tokens(list(family.plain))
    if family.adds_bos:
        bos = (family.bos, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[bos]
        )
    tokenizer.chat_template = family.template
    return tokenizer


MERGES = [("t", "h"), ("th", "e"), ("e", "r"), ("\n", "\n")]


def _byte_level(family: Family) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left, right in MERGES if "\n" not in left] + [("Ġ", "the")]
    core = Tokenizer(models.BPE(vocab=_vocabulary(family, alphabet, merges), merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def _metaspace(family: Family) -> Tokenizer:
    letters = [*map(chr, range(33, 127)), "\n", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [*MERGES, ("▁", "the")]
    core = Tokenizer(
        models.BPE(
            vocab=_vocabulary(family, ["<unk>", *letters], merges),
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def _vocabulary(
    family: Family, letters: list[str], merges: list[tuple[str, str]]
) -> dict[str, int]:
    special = [token for token in family.tokens if token not in family.plain]
    words = dict.fromkeys([*special, *letters, *("".join(merge) for merge in merges)])
    return {word: number for number, word in enumerate(words)}
