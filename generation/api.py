"""Batches over REST: list, start, look at, cancel, go on. For managers, as the pages are."""

from collections.abc import Mapping
from typing import Any

from django.shortcuts import get_object_or_404
from django.urls import path, reverse
from rest_framework import serializers, status
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from generation.lineage import UnknownPolicy, by_name
from generation.models import Batch
from generation.selecting import Selection
from generation.services import (
    BatchLive,
    CannotGenerate,
    cancel_batch,
    resume_batch,
    start_batch,
)
from labeling.access import MANAGERS, project_for
from labeling.models import Policy, Project
from labeling.services.promoting import serving_policy

SELECTION = ("split", "ids", "search", "fewer_than", "limit")


class Pages(PageNumberPagination):  # type: ignore[misc]  # the library has no types
    """`?page=2&page_size=50`"""

    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 100


class StrictSerializer(serializers.Serializer):  # type: ignore[misc]
    """Refuses fields that it does not know: a misspelt option must not be passed over."""

    def to_internal_value(self, data: Any) -> Any:
        """ValidationError names every unknown field."""
        if isinstance(data, Mapping) and (unknown := data.keys() - self.fields.keys()):
            raise serializers.ValidationError({name: ["Unknown field."] for name in unknown})
        return super().to_internal_value(data)


class ShareSerializer(StrictSerializer):
    """A policy by its name, or one of the words current, previous and base; and its weight."""

    policy = serializers.CharField()
    weight = serializers.IntegerField(default=1)


class SelectionSerializer(StrictSerializer):
    """Which prompts: see `Selection`. `start_batch` knows the limits."""

    split = serializers.CharField(required=False, allow_blank=True)
    ids = serializers.ListField(child=serializers.IntegerField(), required=False)
    search = serializers.CharField(required=False, allow_blank=True, trim_whitespace=False)
    fewer_than = serializers.IntegerField(required=False, allow_null=True)
    limit = serializers.IntegerField(required=False, allow_null=True)


class NewBatchSerializer(StrictSerializer):
    """What may be asked of a batch; everything has a default. `start_batch` knows the limits."""

    policies = ShareSerializer(many=True, required=False)
    selection = SelectionSerializer(required=False)
    k = serializers.IntegerField(required=False)
    temperature = serializers.FloatField(required=False)
    top_p = serializers.FloatField(required=False)
    max_new_tokens = serializers.IntegerField(required=False)
    stop = serializers.ListField(child=serializers.CharField(trim_whitespace=False), required=False)
    system = serializers.CharField(required=False, allow_blank=True)
    seed = serializers.IntegerField(required=False, allow_null=True)
    pairing = serializers.CharField(required=False)
    random_percent = serializers.IntegerField(required=False)


class NothingSerializer(StrictSerializer):
    """No field at all."""


def as_json(batch: Batch) -> dict[str, Any]:
    """A batch as the API shows it."""
    return {
        "number": batch.number,
        "url": _address(batch),
        "state": batch.state,
        "origin": batch.origin,
        "started_by": batch.started_by.get_username() if batch.started_by else None,
        "resumed_by": batch.resumed_by.get_username() if batch.resumed_by else None,
        "policies": [
            {
                "policy": share.policy.name,
                "weight": share.weight,
                "digest": share.policy.digest,
                "leads": share.policy_id == batch.leading_id,
            }
            for share in batch.shares.all()
        ],
        "selection": Selection.from_json(batch.selection).as_json(),
        "seed": batch.seed,
        **batch.sampling,
        "sampler": batch.sampler or None,
        "engine": batch.engine or None,
        "total": batch.total,
        "done": batch.done,
        "failures": batch.failures,
        "comparisons": batch.comparisons,
        "error": batch.error,
        "created_at": batch.created_at,
        "started_at": batch.started_at,
        "finished_at": batch.finished_at,
    }


class ProjectView(APIView):  # type: ignore[misc]
    """What a manager may ask of a project; to all others it is not there, whatever they ask."""

    project: Project

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Comes before the method is looked at."""
        super().initial(request, *args, **kwargs)
        self.project = project_for(request.user, kwargs["slug"], MANAGERS)


class Batches(ProjectView):
    """The project's batches."""

    def get(self, request: Request, slug: str) -> Response:
        """Newest first, in pages."""
        pages = Pages()
        page = pages.paginate_queryset(_batches(self.project).order_by("-number"), request)
        return pages.get_paginated_response([as_json(batch) for batch in page])

    def post(self, request: Request, slug: str) -> Response:
        """Start one. 201 with its address, 400 with the fields at fault, 409 where one is live."""
        wanted = NewBatchSerializer(data=request.data)
        wanted.is_valid(raise_exception=True)
        options = dict(wanted.validated_data)
        options["policies"] = _policies(self.project, options.pop("policies", None))
        if "selection" in options:
            options["selection"] = _selection(options["selection"])
        try:
            batch = start_batch(
                project=self.project, actor=request.user, origin=Batch.Origin.API, **options
            )
        except BatchLive as reason:
            return Response({"detail": str(reason)}, status=status.HTTP_409_CONFLICT)
        except CannotGenerate as reason:
            raise serializers.ValidationError(_by_field(reason)) from None
        made = _batches(self.project).get(pk=batch.pk)
        headers = {"Location": _address(made)}
        return Response(as_json(made), status=status.HTTP_201_CREATED, headers=headers)


class OneBatch(ProjectView):
    """One batch."""

    def get(self, request: Request, slug: str, number: int) -> Response:
        """As it is now."""
        return Response(as_json(get_object_or_404(_batches(self.project), number=number)))


class CancelBatch(ProjectView):
    """Asking a batch to stop."""

    def post(self, request: Request, slug: str, number: int) -> Response:
        """202: it stops after the prompts in hand. 409 where it had ended already."""
        NothingSerializer(data=request.data).is_valid(raise_exception=True)
        batch = get_object_or_404(_batches(self.project), number=number)
        if not batch.live:
            detail = f"Batch {number} had ended already: {batch.state}."
            return Response({"detail": detail}, status=status.HTTP_409_CONFLICT)
        cancel_batch(batch=batch)
        return Response(
            as_json(_batches(self.project).get(pk=batch.pk)), status=status.HTTP_202_ACCEPTED
        )


class ResumeBatch(ProjectView):
    """Having a batch that ended too early go on."""

    def post(self, request: Request, slug: str, number: int) -> Response:
        """202: only what it lacks is asked. 409 where it cannot go on, or a batch is live."""
        NothingSerializer(data=request.data).is_valid(raise_exception=True)
        batch = get_object_or_404(_batches(self.project), number=number)
        try:
            resume_batch(batch=batch, actor=request.user)
        except CannotGenerate as reason:
            return Response({"detail": str(reason)}, status=status.HTTP_409_CONFLICT)
        return Response(
            as_json(_batches(self.project).get(pk=batch.pk)), status=status.HTTP_202_ACCEPTED
        )


def _batches(project: Project) -> Any:
    found = project.batches.select_related("project", "started_by", "resumed_by").defer("barren")
    return found.prefetch_related("shares__policy")


def _address(batch: Batch) -> str:
    return reverse("api:batch", kwargs={"slug": batch.project.slug, "number": batch.number})


def _policies(project: Project, shares: list[dict[str, Any]] | None) -> dict[Policy, int]:
    """The serving policy alone where no share is given."""
    if shares is None:
        serving = serving_policy(project)
        return {serving: 1} if serving else {}
    names = [share["policy"] for share in shares]
    if len(set(names)) < len(names):
        raise serializers.ValidationError({"policies": ["A policy is named twice."]})
    try:
        return by_name(project, {share["policy"]: share["weight"] for share in shares})
    except UnknownPolicy as error:
        raise serializers.ValidationError({"policies": [str(error)]}) from None


def _selection(given: Mapping[str, Any]) -> Selection:
    parts = dict(given)
    return Selection(**{**parts, "ids": tuple(dict.fromkeys(parts.get("ids", ())))})


def _by_field(reason: CannotGenerate) -> dict[str, Any]:
    """The errors under the names of the request's own fields."""
    found: dict[str, Any] = {}
    for name, messages in reason.errors.items():
        if name in SELECTION:
            found.setdefault("selection", {})[name] = messages
        else:
            found[name or "detail"] = messages
    return found


urlpatterns = [
    path("projects/<slug:slug>/batches/", Batches.as_view(), name="batches"),
    path("projects/<slug:slug>/batches/<int:number>/", OneBatch.as_view(), name="batch"),
    path(
        "projects/<slug:slug>/batches/<int:number>/cancel/",
        CancelBatch.as_view(),
        name="cancel_batch",
    ),
    path(
        "projects/<slug:slug>/batches/<int:number>/resume/",
        ResumeBatch.as_view(),
        name="resume_batch",
    ),
]
