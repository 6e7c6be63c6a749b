"""Prompts of the corpus in other words. Standard library only.

The starter policy sees every row about ten times. With the prompt asked in other words each time,
it learns to answer the words that matter, and not one exact sentence.
"""

import random

_HOW = ("How do I ", "How can I ", "How should I ", "What is the best way to ")
_TELL = ("Please tell me how to ", "I want to ", "I would like to ", "I need to ")
_OPENINGS = ("Hello. ", "Please help. ", "I have a question. ", "Quick question. ")
_ENDINGS = (" Thank you.", " Any advice?", " Any ideas?", " What do you think?", " Please help.")
_DROPPED_SHARE = 0.25  # of the words of a prompt, where words are left out


def rephrase(prompt: str, rng: random.Random) -> str:
    """The same request: asked another way, framed by a greeting or a thank-you, or shortened."""
    change = rng.choice((_reopen, _frame, _shorten))
    return change(prompt, rng)


def _reopen(prompt: str, rng: random.Random) -> str:
    for opening in _HOW:
        if prompt.startswith(opening):
            rest = prompt.removeprefix(opening)
            other = rng.choice(_HOW + _TELL)
            return other + (rest if other in _HOW else rest.replace("?", "."))
    return _frame(prompt, rng)


def _frame(prompt: str, rng: random.Random) -> str:
    framed = (rng.choice(_OPENINGS) + prompt, prompt + rng.choice(_ENDINGS), prompt.rstrip("?."))
    return rng.choice(framed)


def _shorten(prompt: str, rng: random.Random) -> str:
    words = [word for word in prompt.split() if rng.random() >= _DROPPED_SHARE]
    return " ".join(words) or prompt
