"""The pages' style sheets, scripts and templates: plain files beside this module, read as text.

Pages carry all they need, so these files are put into them and never requested by a browser.
"""

import base64
import hashlib
from importlib.resources import files


def asset(name: str) -> str:
    """The text of one of this folder's files."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def content_policy(script: str, also: str = "") -> str:
    """A content security policy for a page whose only script is `script`: no requests, no other code, pictures as data.

    Args:
        script: Exactly what stands between the script tags.
        also: Further directives, such as `connect-src 'self'`.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return f"{policy}; {also}" if also else policy
