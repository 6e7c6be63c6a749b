"""Routes of the labeling app. One route a line."""

from django.urls import path

from labeling.views import judge, policies, preferences, project

app_name = "labeling"
urlpatterns = [
    path("p/<slug:slug>/judge/", judge.judge, name="judge"),
    path("p/<slug:slug>/judge/skip/", judge.skip, name="judge_skip"),
    path("p/<slug:slug>/judge/undo/", judge.undo, name="judge_undo"),
    path("p/<slug:slug>/judge/renew/", judge.renew, name="judge_renew"),
    path("p/<slug:slug>/", project.project, name="project"),
    path("p/<slug:slug>/policies/", policies.policies, name="policies"),
    path("p/<slug:slug>/policies/<int:policy>/promote/", policies.promote_policy, name="promote"),
    path("p/<slug:slug>/policies/roll-back/", policies.roll_back_policy, name="roll_back"),
    path("p/<slug:slug>/preferences/", preferences.preferences, name="preferences"),
    path(
        "p/<slug:slug>/preferences/export/",
        preferences.export_preferences,
        name="export_preferences",
    ),
]
