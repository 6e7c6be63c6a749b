"""Routes of the training app. One route a line."""

from django.urls import path

from training import views

app_name = "training"
urlpatterns = [
    path("p/<slug:slug>/rounds/", views.rounds, name="rounds"),
    path("p/<slug:slug>/rounds/new/", views.new_round, name="new_round"),
    path("p/<slug:slug>/rounds/<int:number>/", views.round_page, name="round"),
    path("p/<slug:slug>/rounds/<int:number>/cancel/", views.cancel, name="cancel_round"),
]
