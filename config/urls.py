"""The site's routes."""

from importlib.util import find_spec

from django.urls import URLPattern, URLResolver, include, path

from config.views import healthz
from labeling.views.account import SignIn, SignOut
from labeling.views.home import home
from labeling.views.joining import join
from labeling.views.own_settings import own_settings

urlpatterns: list[URLPattern | URLResolver] = [
    path("", home, name="home"),
    path("sign-in/", SignIn.as_view(), name="login"),
    path("sign-out/", SignOut.as_view(), name="logout"),
    path("invite/<str:token>/", join, name="join"),
    path("settings/", own_settings, name="own_settings"),
    path("healthz", healthz, name="healthz"),
    path("", include("labeling.urls")),
]
for app in ("generation", "training"):
    if find_spec(f"{app}.urls"):
        urlpatterns.append(path("", include(f"{app}.urls")))
urlpatterns.append(path("api/v1/", include(("generation.api", "api"))))
