"""Redaction of passwords in URIs.

Passwords follow the user (`postgresql://me:password@host/db`, `s3://key:secret@bucket`) or are query parameters
(`?password=..`, `?token=..`). Everything printed, logged or written goes through `redact`, including whole messages,
since libraries repeat the URI that they were given. A password that is needed again comes from the environment.
"""

import re

MASK = "***"

# Up to the last @ of a word: a password that is not percent-encoded may contain one.
_AFTER_USER = re.compile(r"(://[^\s/:@]*:)\S*@")
_QUERY = re.compile(
    r"([?&;]\w*(?:password|passwd|pwd|secret|token|key|sig|credential)\w*=)[^\s&;#'\"]+", re.I
)


def redact(text: str) -> str:
    """The text with every password in a URI replaced by `***`."""
    return _QUERY.sub(rf"\1{MASK}", _AFTER_USER.sub(rf"\1{MASK}@", text))


def holds_password(uri: str) -> bool:
    """Whether `redact` would change it."""
    return redact(uri) != uri
