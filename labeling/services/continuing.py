"""Later turns: the user goes on after an answer, and the conversation is a prompt once more."""

import re
from collections.abc import Iterator, Sequence

from django.db import transaction

from labeling.chat import ChatError, Message, check_prompt_messages
from labeling.formats import MAX_ID_LENGTH
from labeling.models import Project, Prompt, Response
from labeling.models.prompts import prompt_digest

CHUNK = 500  # rows looked up and written together


@transaction.atomic
def continue_conversations(*, responses: Sequence[Response]) -> list[Prompt]:
    """The next prompt of each conversation that has a turn left; those that are new.

    A prompt goes on once, after the first of these responses that ended by itself, else after the
    first. The new prompt is on its parent's side of the split, so that a conversation is never on
    both. Blank responses are not gone on from, and a conversation that the project holds already
    is left as it is.
    """
    chosen = _first_ended(responses)
    prompts = [
        prompt
        for ids in _chunks(sorted(chosen))
        for prompt in Prompt.objects.filter(pk__in=ids, metadata__has_key="turns").order_by("pk")
    ]
    _lock_projects(prompts)
    continued = _continued(prompts)
    wanted: dict[tuple[int, str], Prompt] = {}
    for prompt in prompts:
        following = _next_prompt(prompt, chosen[prompt.pk])
        if following is not None and prompt.pk not in continued:
            wanted[following.project_id, following.digest] = following
    held = _held(list(wanted))
    new = [prompt for key, prompt in wanted.items() if key not in held]
    return Prompt.objects.bulk_create(new, batch_size=CHUNK)


def _first_ended(responses: Sequence[Response]) -> dict[int, Response]:
    """By prompt, the response to go on from."""
    chosen: dict[int, Response] = {}
    for response in sorted(responses, key=lambda one: (one.finish_reason != "stop", one.pk)):
        if response.text.strip():
            chosen.setdefault(response.prompt_id, response)
    return chosen


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))


def _lock_projects(prompts: Sequence[Prompt]) -> None:
    """Imports into these projects, and other calls of ours, wait until we are done."""
    ids = {prompt.project_id for prompt in prompts}
    list(Project.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk"))


def _continued(prompts: Sequence[Prompt]) -> set[int]:
    """Those that have been gone on from, after whichever response."""
    return {
        prompt_id
        for ids in _chunks([prompt.pk for prompt in prompts])
        for prompt_id in Response.objects.filter(
            prompt__in=ids, continuation__isnull=False
        ).values_list("prompt", flat=True)
    }


def _held(keys: Sequence[tuple[int, str]]) -> set[tuple[int, str]]:
    """Of these (project, digest), the ones that are in the record."""
    projects = {project for project, _ in keys}
    return {
        key
        for start in range(0, len(keys), CHUNK)
        for key in Prompt.objects.filter(
            project__in=projects, digest__in=[digest for _, digest in keys[start : start + CHUNK]]
        ).values_list("project_id", "digest")
    }


def _next_prompt(prompt: Prompt, response: Response) -> Prompt | None:
    """The conversation with this answer and the user's next turn; None where there is none."""
    turns = prompt.metadata["turns"]
    if not isinstance(turns, list) or not turns:
        return None
    answer = Message(role="assistant", content=response.text)
    turn = Message(role="user", content=turns[0])
    try:
        messages = check_prompt_messages([*prompt.messages, answer, turn])
    except ChatError:
        return None
    metadata = {key: value for key, value in prompt.metadata.items() if key != "turns"}
    return Prompt(
        project_id=prompt.project_id,
        external_id=_next_id(prompt),
        messages=messages,
        digest=prompt_digest(messages),
        split=prompt.split,
        metadata=metadata | ({"turns": turns[1:]} if turns[1:] else {}),
        continues=response,
    )


def _next_id(prompt: Prompt) -> str:
    """81, 81/2, 81/3; what has no id stays without."""
    if not prompt.external_id:
        return ""
    base, number = prompt.external_id, 1
    counted = re.fullmatch(r"(.*)/(\d{1,9})", base, re.DOTALL)
    if counted and prompt.continues_id is not None:
        base, number = counted[1], int(counted[2])
    suffix = f"/{number + 1}"
    return base[: MAX_ID_LENGTH - len(suffix)] + suffix
