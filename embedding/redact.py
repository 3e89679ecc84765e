"""Text without credentials: every line this program prints and every text it stores passes through here.

Credentials are known by their shape (in URLs, in headers, by how a key or token begins) or by their value (what this
process's environment holds). Names of recordings are data: the columns ``file`` keep them as they are.
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
# Where URLs may carry a login; a proxy's variable goes by either case.
URL_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# A shorter value ("test") is a word that ordinary text holds, too.
SHORTEST_SECRET = 8

_LOGIN = re.compile(r"(?:\w+://)?(?P<login>[^:/@]*:(?P<password>.+)@)")
_PORT = r"\d*(?:[/?#\s]|$)"
# A key or token begins after anything but a letter or digit; those of an escape (%3D) do not count.
_BEGIN = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"
_PARAMETER = (
    r"[\w-]*(?:signature|credential|token|secret|password|passwd|(?:api|access)[_-]?key(?:[_-]?id)?)|sig|pwd|auth"
)

_SHAPES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # scheme://login@host. The second branch: secrets often have a "/" in them, which nobody has escaped; neither
        # host:port nor the ARN of an access point is a login. One slash too few makes s3:// a local path.
        (rf"(://|\bs3:/)(?:[^/?#\s]*|(?!arn:)[^/?#\s:@\[]+:(?!{_PORT})[^@\s]*)@", rf"\1{HIDDEN}@"),
        (rf"(?i)((?:[?&;]|%3F|%26)(?:{_PARAMETER})(?:=|%3D))(?:(?!%26)[^&;#\s\"<>])+", rf"\1{HIDDEN}"),
        # A header to the end of its line; of a dict of headers, to the end of its text.
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
    """``text`` with ``***`` in place of every credential that is known by its shape or its value."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def redact_all(value: Any) -> Any:
    """A JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


def redact_log(record: logging.LogRecord) -> bool:
    """A filter of a logging handler: the record, its traceback included, without credentials."""
    record.msg, record.args = redact(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
    return True


def _secrets() -> list[str]:
    """Return the secrets of the environment, plain and URL-quoted; the longest first, as one may contain another."""
    values = [os.environ.get(name, "").strip() for name in SECRET_VARIABLES]
    logins = []
    for name in URL_VARIABLES:
        for url in (os.environ.get(name, ""), os.environ.get(name.lower(), "")):
            if login := _LOGIN.match(url):
                values.append(login["password"])
                logins.append(login["login"])  # of any length: its ":" and "@" make it no word
    spellings = [spelling for value in values for spelling in (value, unquote(value), quote(value), quote(value, ""))]
    return sorted(logins + [secret for secret in spellings if len(secret) >= SHORTEST_SECRET], key=len, reverse=True)
