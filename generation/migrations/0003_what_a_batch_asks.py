"""What a batch asks, and plans. The policy that a batch had becomes the one that leads it."""

import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

import generation.models


class Migration(migrations.Migration):
    dependencies = [
        ("generation", "0002_initial"),
        ("labeling", "0001_initial"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RenameField(model_name="batch", old_name="policy", new_name="leading"),
        migrations.AddField(
            model_name="batch",
            name="barren",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="Of an automatic batch: prompts that gave nothing new to compare.",
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="comparisons",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Made of its responses so far; unknown for old batches.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="engine",
            field=models.CharField(
                blank=True, help_text="What wrote it, and version.", max_length=200
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="origin",
            field=models.CharField(
                choices=[
                    ("manual", "by hand"),
                    ("top_up", "to keep comparisons ready"),
                    ("promotion", "after a promotion"),
                    ("api", "through the API"),
                    ("command", "by the command"),
                ],
                default="manual",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="pairing",
            field=models.CharField(
                choices=[
                    ("random", "Random"),
                    ("across", "Across policies"),
                    ("different", "Most different texts"),
                    ("smallest_margin", "Smallest reward margin"),
                    ("largest_margin", "Largest reward margin"),
                    ("best_of_n", "Best of n against random"),
                ],
                default="random",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="random_percent",
            field=models.PositiveSmallIntegerField(
                default=20,
                help_text="Share of prompts that are paired at random whatever the pairing.",
                validators=[
                    django.core.validators.MinValueValidator(10),
                    django.core.validators.MaxValueValidator(100),
                ],
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="sampler",
            field=models.CharField(blank=True, help_text="Chosen by the worker.", max_length=16),
        ),
        migrations.AddField(
            model_name="batch",
            name="sampler_why",
            field=models.CharField(blank=True, max_length=500),
        ),
        migrations.AddField(
            model_name="batch",
            name="selection",
            field=models.JSONField(blank=True, default=dict, help_text="Which prompts are asked."),
        ),
        migrations.AddField(
            model_name="batch",
            name="stop",
            field=models.JSONField(
                blank=True,
                default=list,
                help_text="Texts that end a response.",
                validators=[generation.models.check_stop],
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="system",
            field=models.TextField(
                blank=True,
                help_text="System message of prompts that have none of their own.",
                validators=[
                    django.core.validators.MaxLengthValidator(10000),
                    generation.models.check_storable,
                ],
            ),
        ),
        migrations.AddField(
            model_name="batch",
            name="taken",
            field=models.PositiveIntegerField(
                default=0, help_text="Prompts taken into the record."
            ),
        ),
        migrations.AlterField(
            model_name="batch",
            name="leading",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="led_batches",
                to="labeling.policy",
            ),
        ),
        migrations.AlterField(
            model_name="batch",
            name="seed",
            field=models.PositiveIntegerField(
                default=0, validators=[django.core.validators.MaxValueValidator(2147483647)]
            ),
        ),
        migrations.AlterField(
            model_name="batch",
            name="temperature",
            field=models.FloatField(
                default=1.0,
                validators=[
                    generation.models.check_finite,
                    django.core.validators.MinValueValidator(0.0),
                    django.core.validators.MaxValueValidator(2.0),
                ],
            ),
        ),
        migrations.AlterField(
            model_name="batch",
            name="top_p",
            field=models.FloatField(
                default=1.0,
                validators=[
                    generation.models.check_finite,
                    django.core.validators.MinValueValidator(0.01),
                    django.core.validators.MaxValueValidator(1.0),
                ],
            ),
        ),
        migrations.CreateModel(
            name="BatchPolicy",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "weight",
                    models.PositiveSmallIntegerField(
                        default=1,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                (
                    "batch",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="shares",
                        to="generation.batch",
                    ),
                ),
                (
                    "policy",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="batch_shares",
                        to="labeling.policy",
                    ),
                ),
            ],
            options={
                "ordering": ["pk"],
            },
        ),
        migrations.AddField(
            model_name="batch",
            name="policies",
            field=models.ManyToManyField(
                related_name="batches", through="generation.BatchPolicy", to="labeling.policy"
            ),
        ),
        migrations.CreateModel(
            name="Plan",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "k",
                    models.PositiveSmallIntegerField(
                        default=4,
                        validators=[
                            django.core.validators.MinValueValidator(2),
                            django.core.validators.MaxValueValidator(16),
                        ],
                    ),
                ),
                (
                    "temperature",
                    models.FloatField(
                        default=1.0,
                        validators=[
                            generation.models.check_finite,
                            django.core.validators.MinValueValidator(0.0),
                            django.core.validators.MaxValueValidator(2.0),
                        ],
                    ),
                ),
                (
                    "top_p",
                    models.FloatField(
                        default=1.0,
                        validators=[
                            generation.models.check_finite,
                            django.core.validators.MinValueValidator(0.01),
                            django.core.validators.MaxValueValidator(1.0),
                        ],
                    ),
                ),
                (
                    "max_new_tokens",
                    models.PositiveIntegerField(
                        default=160,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(4096),
                        ],
                    ),
                ),
                (
                    "stop",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="Texts that end a response.",
                        validators=[generation.models.check_stop],
                    ),
                ),
                (
                    "system",
                    models.TextField(
                        blank=True,
                        help_text="System message of prompts that have none of their own.",
                        validators=[
                            django.core.validators.MaxLengthValidator(10000),
                            generation.models.check_storable,
                        ],
                    ),
                ),
                (
                    "pairing",
                    models.CharField(
                        choices=[
                            ("random", "Random"),
                            ("across", "Across policies"),
                            ("different", "Most different texts"),
                            ("smallest_margin", "Smallest reward margin"),
                            ("largest_margin", "Largest reward margin"),
                            ("best_of_n", "Best of n against random"),
                        ],
                        default="random",
                        max_length=16,
                    ),
                ),
                (
                    "random_percent",
                    models.PositiveSmallIntegerField(
                        default=20,
                        help_text="Share of prompts that are paired at random whatever the pairing.",
                        validators=[
                            django.core.validators.MinValueValidator(10),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                (
                    "ready",
                    models.PositiveIntegerField(
                        default=0,
                        help_text="0 turns it off.",
                        validators=[django.core.validators.MaxValueValidator(5000)],
                    ),
                ),
                (
                    "current",
                    models.PositiveSmallIntegerField(
                        default=1,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                (
                    "previous",
                    models.PositiveSmallIntegerField(
                        default=0, validators=[django.core.validators.MaxValueValidator(100)]
                    ),
                ),
                (
                    "base",
                    models.PositiveSmallIntegerField(
                        default=0, validators=[django.core.validators.MaxValueValidator(100)]
                    ),
                ),
                (
                    "since",
                    models.DateTimeField(
                        default=django.utils.timezone.now,
                        help_text="Batches before this say nothing about going on.",
                    ),
                ),
                (
                    "stopped",
                    models.TextField(blank=True, help_text="Why nothing more is written for now."),
                ),
                (
                    "stopped_at",
                    models.CharField(
                        blank=True, help_text="What must change before it goes on.", max_length=200
                    ),
                ),
                (
                    "project",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="plan",
                        to="labeling.project",
                    ),
                ),
                (
                    "saved_by",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "abstract": False,
            },
        ),
        migrations.AddConstraint(
            model_name="batchpolicy",
            constraint=models.UniqueConstraint(
                fields=("batch", "policy"), name="batch_policy_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="batchpolicy",
            constraint=models.CheckConstraint(
                condition=models.Q(("weight__gte", 1)), name="batch_policy_weight_min"
            ),
        ),
    ]
