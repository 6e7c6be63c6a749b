"""How the log's lines look, and what never gets into them."""

import logging
import re

# An invitation's link lets in whoever opens it first. It may stand in an address, or in one
# that is a parameter of another.
INVITATION = re.compile(r"((?:/|%2F)invite(?:/|%2F))[\w-]+", re.I)


class LineFormatter(logging.Formatter):
    """A line, or a line with its traceback, without the tokens of invitations."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole text, as it is written."""
        return INVITATION.sub(r"\1***", super().format(record))
