"""Routes of the generation app. One route a line."""

from django.urls import path

from generation import policy_views, views

app_name = "generation"
urlpatterns = [
    path("p/<slug:slug>/policies/add/", policy_views.add_policy, name="add_policy"),
    path("p/<slug:slug>/batches/", views.batches, name="batches"),
    path("p/<slug:slug>/batches/plan/", views.plan, name="plan"),
    path("p/<slug:slug>/batches/matching/", views.matching, name="matching"),
    path("p/<slug:slug>/batches/<int:number>/", views.batch, name="batch"),
    path("p/<slug:slug>/batches/<int:number>/cancel/", views.cancel, name="cancel_batch"),
    path("p/<slug:slug>/batches/<int:number>/resume/", views.resume, name="resume_batch"),
]
