"""What a server serves: its models, by name, and adapters that it is told to load."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from generation.samplers.http import Failed, Garbage, Host, Refused
from generation.samplers.protocol import PolicySpec, served_name
from jobs.run_dir import RunDirError

VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,60}")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model that a server lists: `parent` is an adapter's base, `root` where it came from."""

    id: str
    root: str | None = None
    parent: str | None = None
    positions: int | None = None
    owner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a server said: for each policy the names it answers under, the one to ask for first,
    and its positions. `vllm` is "vLLM" with its version, "" where it is something else."""

    names: Mapping[str, tuple[str, ...]]
    contexts: Mapping[str, int | None]
    vllm: str


async def find_out(host: Host, policies: Sequence[PolicySpec], seconds: float) -> Serving:
    """The server's names for the policies, adapters loaded where need be.

    RunDirError where it has not all of them, with what to do.
    """
    cards = await _cards(host, seconds)
    for policy in policies:
        if not _names(policy, cards):
            await _load(host, policy, cards, seconds)
            cards.append(Card(id=served_name(policy), parent=_base_names(policy, cards)[0]))
    return Serving(
        names={policy.id: _names(policy, cards) for policy in policies},
        contexts={policy.id: _context(policy, cards) for policy in policies},
        vllm=await _version(host, cards, seconds),
    )


def refuse_host(host: Host, refused: Refused) -> None:
    """RunDirError where the server refuses more than this one request."""
    if refused.status < 400:
        raise RunDirError(
            f"{host.url} redirects to another address. Nothing is sent there; set "
            "PREFLOOP_SERVER_URLS to the server's own address"
        ) from None
    if refused.status in (401, 403):
        raise RunDirError(
            f"{host.url} refuses the key ({refused.status}): put the right one into the file that "
            "PREFLOOP_SERVER_KEY_FILE names"
        ) from None


async def _cards(host: Host, seconds: float) -> list[Card]:
    try:
        answer = await host.call("/v1/models", seconds=seconds)
    except Refused as refused:
        refuse_host(host, refused)
        raise RunDirError(f"{host.url} is no server of models ({refused})") from None
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Garbage("its list of models is none")
    return [_card(row) for row in rows]


def _card(row: dict[str, Any]) -> Card:
    def text(name: str) -> str | None:
        found = row.get(name)
        return found if isinstance(found, str) and "\0" not in found else None

    positions = row.get("max_model_len")
    return Card(
        id=text("id") or "",
        root=text("root"),
        parent=text("parent"),
        positions=positions if type(positions) is int else None,
        owner=text("owned_by"),
    )


def _names(policy: PolicySpec, cards: Sequence[Card]) -> tuple[str, ...]:
    if policy.adapter is None:
        return _base_names(policy, cards)
    name = served_name(policy)
    return (name,) if any(card.id == name for card in cards) else ()


def _base_names(policy: PolicySpec, cards: Sequence[Card]) -> tuple[str, ...]:
    """Names of the policy's model. A server with several names for one answers with its first."""
    bases = [card for card in cards if not card.parent]
    found = [card for card in bases if _is_base(policy, card)]
    roots = {card.root for card in found} - {None}
    same = [card for card in bases if card.root in roots]
    return tuple(dict.fromkeys(card.id for card in found + same))


def _is_base(policy: PolicySpec, card: Card) -> bool:
    if policy.adapter is None and card.id == served_name(policy):
        return True
    return any(_same_folder(named, policy.model) for named in (card.id, card.root))


def _same_folder(named: str | None, folder: str) -> bool:
    if not named or not os.path.isabs(named):
        return False
    return os.path.realpath(named) == os.path.realpath(folder)


def _context(policy: PolicySpec, cards: Sequence[Card]) -> int | None:
    names = set(_names(policy, cards))
    parents = {card.parent for card in cards if card.id in names}
    found = [card.positions for card in cards if card.id in names | parents]
    return min((most for most in found if most is not None), default=None)


async def _load(host: Host, policy: PolicySpec, cards: Sequence[Card], seconds: float) -> None:
    """Have an adapter loaded; RunDirError where that cannot be."""
    name, served = served_name(policy), ", ".join(card.id for card in cards) or "nothing"
    if not _base_names(policy, cards):
        named = f" --served-model-name {name}" if policy.adapter is None else ""
        raise RunDirError(
            f"{host.url} does not serve the model {policy.model} (it serves "
            f"{host.clean(served)}). Start it with: vllm serve {policy.model}{named}"
        )
    body = {"lora_name": name, "lora_path": policy.adapter}
    try:
        await host.fetch("/v1/load_lora_adapter", body, seconds=seconds)
    except Refused as refused:
        refuse_host(host, refused)
        if "already been loaded" in refused.said:  # by another batch, a moment ago
            return
        raise _cannot_load(host, policy, refused) from None
    except Failed as failure:
        if failure.status == 500:  # what vLLM answers where the adapter does not suit it
            raise _cannot_load(host, policy, failure) from None
        raise


def _cannot_load(host: Host, policy: PolicySpec, said: Exception) -> RunDirError:
    return RunDirError(
        f"{host.url} does not serve the adapter {policy.adapter}, and did not load it ({said}). It "
        "loads adapters that it can read when it was started with --enable-lora, a --max-lora-rank "
        "that is enough, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment; or start it "
        f"with --lora-modules {served_name(policy)}={policy.adapter}"
    )


async def _version(host: Host, cards: Sequence[Card], seconds: float) -> str:
    if not any(card.owner == "vllm" for card in cards):
        return ""
    try:
        answer = await host.call("/version", seconds=seconds)
    except (Refused, Garbage):
        return "vLLM"
    version = answer.get("version") if isinstance(answer, dict) else None
    return f"vLLM {version}" if VERSION.fullmatch(str(version or "")) else "vLLM"
