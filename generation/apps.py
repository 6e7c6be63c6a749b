from django.apps import AppConfig


class GenerationConfig(AppConfig):
    """Prompts in, candidate responses out."""

    name = "generation"

    def ready(self) -> None:
        from generation import evaluating, signals  # noqa: F401  connects the receivers
