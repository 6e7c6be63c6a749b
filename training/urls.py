"""Routes of the training app. One route a line."""

from django.urls import path

from training import comparing_views, policy_views, schedule_views, starting_views, views

app_name = "training"
urlpatterns = [
    path("p/<slug:slug>/rounds/", views.rounds, name="rounds"),
    path("p/<slug:slug>/rounds/new/", starting_views.new_round, name="new_round"),
    path("p/<slug:slug>/rounds/new/preview/", starting_views.preview_round, name="preview_round"),
    path("p/<slug:slug>/rounds/compare/", comparing_views.compare, name="compare_rounds"),
    path("p/<slug:slug>/rounds/schedule/", schedule_views.schedule, name="schedule"),
    path("p/<slug:slug>/rounds/schedule/preview/", schedule_views.preview, name="preview_schedule"),
    path("p/<slug:slug>/rounds/schedule/pause/", schedule_views.pause, name="pause_schedule"),
    path("p/<slug:slug>/rounds/<int:number>/", views.round_page, name="round"),
    path("p/<slug:slug>/rounds/<int:number>/cancel/", views.cancel, name="cancel_round"),
    path("p/<slug:slug>/rounds/<int:number>/resume/", starting_views.resume, name="resume_round"),
    path(
        "p/<slug:slug>/policies/<int:policy>/merge/", policy_views.merge_policy, name="merge_policy"
    ),
    path(
        "p/<slug:slug>/policies/<int:policy>/merge/cancel/",
        policy_views.cancel_merge,
        name="cancel_merge",
    ),
    path("p/<slug:slug>/policies/disk/", policy_views.disk, name="disk"),
    path("p/<slug:slug>/policies/disk/clean/", policy_views.clean_disk, name="clean_disk"),
]
