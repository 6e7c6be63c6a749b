"""Searching in what the database holds as JSON."""

from typing import Any

from django.db.models import BooleanField, F, Func, Value


class Says(Func):
    """Whether some message of a conversation holds a text. Each database unpacks JSON its way."""

    output_field = BooleanField()

    def __init__(self, messages: str, text: str) -> None:
        pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        super().__init__(F(messages), Value(f"%{pattern}%"))

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """LIKE looks away from case in ASCII only."""
        return self.as_sql(
            compiler,
            connection,
            template="EXISTS (SELECT 1 FROM json_each(%(expressions)s ESCAPE '\\')",
            arg_joiner=") AS turn WHERE json_extract(turn.value, '$.content') LIKE ",
        )

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """As on SQLite."""
        return self.as_sql(
            compiler,
            connection,
            template="EXISTS (SELECT 1 FROM jsonb_array_elements(%(expressions)s)",
            arg_joiner=") AS turn(value) WHERE turn.value->>'content' ILIKE ",
        )
