import json
from pathlib import Path

import pytest

from labeling.models import Comparison, Flag, PolicyEvent, PolicyState, Project
from labeling.policy_files import UnsafePolicy, check_policy_dir, policy_digest
from labeling.services.assigning import lease_again, next_assignment
from labeling.services.flagging import resolve_flag
from labeling.services.judging import skip
from labeling.services.promoting import (
    CannotPromote,
    policy_promoted,
    promote,
    register_policy,
    roll_back,
    serving_policy,
)
from labeling.services.verdicts import FlagGiven
from tests.builders import judge, make_comparison, make_project, make_user


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Looks like a policy; nothing loads it here."""
    path = tmp_path / "policy"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def register(project: Project, folder: Path, name: str):
    return register_policy(project=project, name=name, model_path=folder)


@pytest.mark.django_db
def test_the_first_policy_serves_and_the_next_is_a_candidate(folder) -> None:
    project = make_project()
    first, second = register(project, folder, "one"), register(project, folder, "two")
    assert (first.state, second.state) == (PolicyState.SERVING, PolicyState.CANDIDATE)
    assert register(project, folder, "one") == first, "again is harmless"


@pytest.mark.django_db
def test_promotion_and_rollback_are_events_with_their_actor(folder) -> None:
    project = make_project()
    first, second = register(project, folder, "one"), register(project, folder, "two")
    manager = make_user(role="manager", project=project)
    promote(policy=second, actor=manager, reason="It reads better.")
    assert serving_policy(project) == second
    roll_back(project=project, actor=manager)
    assert serving_policy(project) == first
    last = PolicyEvent.objects.order_by("-id")[0]
    assert (last.kind, last.actor, last.replaced) == ("rolled_back", manager, second)
    with pytest.raises(CannotPromote):
        roll_back(project=project, actor=manager)
    with pytest.raises(CannotPromote):
        promote(policy=first, actor=manager)


@pytest.mark.django_db(transaction=True)
def test_promotion_is_announced_after_the_commit(folder) -> None:
    project = make_project()
    register(project, folder, "one")
    second = register(project, folder, "two")
    heard = []

    def listen(**given: object) -> None:
        heard.append(given["policy"])

    policy_promoted.connect(listen)
    try:
        promote(policy=second, actor=None)
    finally:
        policy_promoted.disconnect(listen)
    assert heard == [second]


@pytest.mark.django_db
def test_promotion_retires_what_nobody_judged_of_the_old_policy(folder) -> None:
    project = make_project(overlap=2)
    first, second = register(project, folder, "one"), register(project, folder, "two")
    unjudged = make_comparison(project=project, policy=first)
    begun = make_comparison(project=project, policy=first)
    imported = make_comparison(project=project)
    judge(comparison=begun)
    promote(policy=second, actor=None)
    states = [Comparison.objects.get(pk=one.pk).state for one in (unjudged, begun, imported)]
    assert states == ["retired", "open", "open"]
    roll_back(project=project, actor=None)
    unjudged.refresh_from_db()
    assert unjudged.state == "open", "after a rollback there is something to judge again"


@pytest.mark.django_db
def test_what_a_manager_took_out_or_held_back_is_not_opened_by_a_roll_back(folder) -> None:
    project = make_project()
    first, second = register(project, folder, "one"), register(project, folder, "two")
    broken = make_comparison(project=project, policy=first)
    held = make_comparison(project=project, policy=first)
    annotator = make_user(role="annotator", project=project)
    token = lease_again(comparison=broken, annotator=annotator).token  # type: ignore[union-attr]
    skip(project=project, annotator=annotator, token=token, flags=[FlagGiven(reason="personal")])
    resolve_flag(flag=Flag.objects.get(), retire=True, actor=annotator)
    Comparison.objects.filter(pk=held.pk).update(state=Comparison.State.HELD)
    promote(policy=second, actor=None)
    roll_back(project=project, actor=None)
    states = [Comparison.objects.get(pk=one.pk).state for one in (broken, held)]
    assert states == ["retired", "held"]


@pytest.mark.django_db
def test_what_somebody_is_looking_at_is_not_retired(folder) -> None:
    project = make_project()
    first, second = register(project, folder, "one"), register(project, folder, "two")
    held = make_comparison(project=project, policy=first)
    annotator = make_user(role="annotator", project=project)
    assert next_assignment(project=project, annotator=annotator) is not None
    promote(policy=second, actor=None)
    held.refresh_from_db()
    assert held.state == "open"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b"\x80\x04"),
        ("optimizer.PT", b""),
        ("modeling_evil.py", b"import os"),
        ("config.json", json.dumps({"auto_map": {"AutoConfig": "evil.Config"}}).encode()),
        ("tokenizer_config.json", b'{"nested": [{"\\u0061uto_map": {}}]}'),
        ("generation_config.json", b"{"),
    ],
)
def test_a_folder_that_could_run_code_is_refused(folder, name, content) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UnsafePolicy):
        check_policy_dir(folder)


def test_a_folder_without_weights_or_configuration_is_refused(folder, tmp_path) -> None:
    check_policy_dir(folder)
    for other in (tmp_path / "absent", folder.parent):  # the latter holds a model, and is none
        with pytest.raises(UnsafePolicy):
            check_policy_dir(other)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafePolicy):
        check_policy_dir(folder)


def test_the_digest_changes_with_any_weight_and_not_with_the_card(folder) -> None:
    before = policy_digest(folder)
    (folder / "README.md").write_text("a card")
    assert policy_digest(folder) == before
    (folder / "model.safetensors").write_bytes(b"weightz")
    assert policy_digest(folder) != before
