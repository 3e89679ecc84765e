"""Removal of credentials from text: every line that this program prints and every text that it stores is redacted.

Credentials are recognised by their form (in URLs, in headers, by the first characters of a key or token) or by their
value (in the environment of this process). Names of recordings are data: the columns ``file`` are not redacted.
"""

import logging
import os
import re
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"

SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
)
# Variables with URLs, which may contain a login. The name of a proxy's variable may be in upper or lower case.
URL_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# A shorter value ("test") may be a word of ordinary text.
SHORTEST_SECRET = 8

_LOGIN = re.compile(r"(?:\w+://)?(?P<login>[^:/@]*:(?P<password>.+)@)")
_PORT = r"\d*(?:[/?#\s]|$)"
# A key or token begins after any character except a letter or digit; the letters and digits of an escape (%3D) may
# precede it.
_BEGIN = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"
_PARAMETER = (
    r"[\w-]*(?:signature|credential|token|secret|password|passwd|(?:api|access)[_-]?key(?:[_-]?id)?)|sig|pwd|auth"
)

_FORMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # scheme://login@host. The second branch is for secrets with a "/" that was not escaped; host:port and the ARN
        # of an access point are not logins. With one slash too few, s3:// becomes a local path.
        (rf"(://|\bs3:/)(?:[^/?#\s]*|(?!arn:)[^/?#\s:@\[]+:(?!{_PORT})[^@\s]*)@", rf"\1{HIDDEN}@"),
        (rf"(?i)((?:[?&;]|%3F|%26)(?:{_PARAMETER})(?:=|%3D))(?:(?!%26)[^&;#\s\"<>])+", rf"\1{HIDDEN}"),
        # A header up to the end of its line; in a dict of headers up to the end of its string.
        (
            r"(?i)(\bauthorization\\*['\"]?\s*[:=]\s*(?:b?\\*['\"])?)"
            r"(?:(?<=')[^'\n]+|(?<=\")[^\"\n]+|(?<!['\"]).+)",
            rf"\1{HIDDEN}",
        ),
        (r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}", rf"\1{HIDDEN}"),
        (rf"{_BEGIN}(?:AKIA|ASIA)[A-Z0-9]{{16,}}", HIDDEN),
        (rf"{_BEGIN}hf_[A-Za-z0-9]{{20,}}", HIDDEN),
    )
]


def redact(text: str) -> str:
    """Return ``text`` with ``***`` in place of every credential that is recognised by its form or its value."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _FORMS:
        text = pattern.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """Return a JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


def redact_record(record: logging.LogRecord) -> bool:
    """Redact a log record and its traceback; a filter for a logging handler."""
    record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
    return True


def _secrets() -> list[str]:
    """Return the secrets in the environment, plain and URL-quoted, the longest first: one may contain another."""
    values = [os.environ.get(name, "").strip() for name in SECRET_VARIABLES]
    logins = []
    for name in URL_VARIABLES:
        for url in (os.environ.get(name, ""), os.environ.get(name.lower(), "")):
            if login := _LOGIN.match(url):
                values.append(login["password"])
                logins.append(login["login"])  # of any length: with ":" and "@" a login is no ordinary word
    spellings = [spelling for value in values for spelling in (value, unquote(value), quote(value), quote(value, ""))]
    return sorted(logins + [secret for secret in spellings if len(secret) >= SHORTEST_SECRET], key=len, reverse=True)
