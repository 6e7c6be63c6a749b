"""Every batch so far was written by one policy: it leads the batch, and is its only share."""

from django.db import migrations


def share(apps, schema_editor):
    """A share for each batch; those that have begun were written by transformers."""
    batches = apps.get_model("generation", "Batch").objects.all()
    shares = apps.get_model("generation", "BatchPolicy").objects
    pairs = batches.filter(shares=None).order_by("pk").values_list("pk", "leading")
    shares.bulk_create(
        (shares.model(batch_id=batch, policy_id=policy, weight=1) for batch, policy in pairs),
        batch_size=500,
    )
    batches.exclude(started_at=None).update(sampler="transformers")


class Migration(migrations.Migration):
    dependencies = [("generation", "0003_what_a_batch_asks")]

    operations = [migrations.RunPython(share, migrations.RunPython.noop)]
