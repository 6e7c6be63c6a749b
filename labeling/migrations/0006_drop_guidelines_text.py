from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("labeling", "0005_guidelines_versions")]

    operations = [migrations.RemoveField(model_name="project", name="guidelines_text")]
