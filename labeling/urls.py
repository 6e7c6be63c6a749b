"""Routes of the labeling app. One route a line."""

from django.urls import path

from labeling.views import (
    evaluations,
    examples,
    flags,
    history,
    judge,
    notifications,
    people,
    policies,
    policy,
    preferences,
    project,
    project_settings,
    queue,
    reading,
)

app_name = "labeling"
JUDGE = "p/<slug:slug>/judge/"
urlpatterns = [
    path(JUDGE, judge.judge, name="judge"),
    path(f"{JUDGE}next/", judge.next_card, name="judge_next"),
    path(f"{JUDGE}skip/", judge.skip, name="judge_skip"),
    path(f"{JUDGE}undo/", judge.undo, name="judge_undo"),
    path(f"{JUDGE}hold/", judge.hold, name="judge_hold"),
    path(f"{JUDGE}give-back/", judge.give_back, name="judge_give_back"),
    path(f"{JUDGE}counts/", judge.counts, name="judge_counts"),
    path(f"{JUDGE}differences/", reading.differences, name="judge_differences"),
    path(f"{JUDGE}text/", reading.text, name="judge_text"),
    path("p/<slug:slug>/history/", history.history, name="history"),
    path("p/<slug:slug>/history/<int:judgment>/", history.judge_again, name="judge_again"),
    path("p/<slug:slug>/guide/", examples.guide, name="guide"),
    path("p/<slug:slug>/practice/", examples.practice, name="practice"),
    path("p/<slug:slug>/examples/add/<int:judgment>/", examples.add, name="add_example"),
    path("p/<slug:slug>/examples/<int:example>/remove/", examples.remove, name="remove_example"),
    path("p/<slug:slug>/people/", people.people, name="people"),
    path("p/<slug:slug>/people/invite/", people.invite, name="invite"),
    path("p/<slug:slug>/people/<int:member>/", people.change, name="change_member"),
    path("p/<slug:slug>/people/<int:member>/remove/", people.remove, name="remove_member"),
    path(
        "p/<slug:slug>/people/invitations/<int:invitation>/revoke/",
        people.revoke,
        name="revoke_invitation",
    ),
    path("p/<slug:slug>/notifications/", notifications.notifications, name="notifications"),
    path("p/<slug:slug>/notifications/add/", notifications.subscribe, name="subscribe"),
    path(
        "p/<slug:slug>/notifications/<int:subscription>/change/",
        notifications.change,
        name="change_subscription",
    ),
    path(
        "p/<slug:slug>/notifications/<int:subscription>/pause/",
        notifications.pause,
        name="pause_subscription",
    ),
    path(
        "p/<slug:slug>/notifications/<int:subscription>/remove/",
        notifications.unsubscribe,
        name="unsubscribe",
    ),
    path(
        "p/<slug:slug>/notifications/<int:subscription>/test/",
        notifications.test,
        name="test_subscription",
    ),
    path(
        "p/<slug:slug>/notifications/messages/<int:delivery>/again/",
        notifications.again,
        name="send_again",
    ),
    path("p/<slug:slug>/queue/", queue.queue, name="queue"),
    path("p/<slug:slug>/queue/change/", queue.change, name="change_queue"),
    path("p/<slug:slug>/flags/", flags.flags, name="flags"),
    path("p/<slug:slug>/flags/<int:flag>/resolve/", flags.resolve, name="resolve_flag"),
    path("p/<slug:slug>/settings/", project_settings.project_settings, name="project_settings"),
    path("p/<slug:slug>/", project.project, name="project"),
    path("p/<slug:slug>/policies/", policies.policies, name="policies"),
    path("p/<slug:slug>/policies/<int:policy>/", policy.policy_page, name="policy"),
    path(
        "p/<slug:slug>/policies/<int:policy>/download/",
        policy.download_policy,
        name="download_policy",
    ),
    path("p/<slug:slug>/policies/<int:policy>/delete/", policy.delete_policy, name="delete_policy"),
    path("p/<slug:slug>/policies/<int:policy>/promote/", policies.promote_policy, name="promote"),
    path(
        "p/<slug:slug>/policies/<int:policy>/evaluate/",
        evaluations.new_evaluation,
        name="new_evaluation",
    ),
    path("p/<slug:slug>/evaluations/<int:evaluation>/", evaluations.evaluation, name="evaluation"),
    path(
        "p/<slug:slug>/evaluations/<int:evaluation>/stop/",
        evaluations.stop_evaluation,
        name="stop_evaluation",
    ),
    path("p/<slug:slug>/policies/roll-back/", policies.roll_back_policy, name="roll_back"),
    path("p/<slug:slug>/preferences/", preferences.preferences, name="preferences"),
    path(
        "p/<slug:slug>/preferences/export/",
        preferences.export_preferences,
        name="export_preferences",
    ),
]
