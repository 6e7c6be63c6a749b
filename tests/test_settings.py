import pytest

from labeling.models import Project


@pytest.mark.django_db
def test_x() -> None:
    Project.objects.create(slug="a", name="A")
