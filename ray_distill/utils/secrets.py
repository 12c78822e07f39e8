"""URIs that may hold a password: what of them is shown, and what is kept.

Passwords stand behind the user (`postgresql://me:password@host/db`, `s3://key:secret@bucket`) or among the options
(`?password=..`, `?token=..`). Whatever is printed, logged or written goes through `redact`, whole messages too,
since libraries repeat the URI that they were given. A password that is needed again comes from the environment.
"""

import re

MASK = "***"

# Up to the last @ of a word: what is not encoded as it should be may hold one itself.
_BEHIND_USER = re.compile(r"(://[^\s/:@]*:)\S*@")
_OPTION = re.compile(
    r"([?&;]\w*(?:password|passwd|pwd|secret|token|key|sig|credential)\w*=)[^\s&;#'\"]+", re.I
)


def redact(text: str) -> str:
    """The text, every password of a URI in it replaced by `***`."""
    return _OPTION.sub(rf"\1{MASK}", _BEHIND_USER.sub(rf"\1{MASK}@", text))


def holds_password(uri: str) -> bool:
    """Whether masking would change it."""
    return redact(uri) != uri
