"""Builds self-contained HTML pages: style, script and pictures are inside the file, so a browser requests nothing else."""

import base64
import hashlib
from html import escape
from importlib.resources import files


def asset(package: str, name: str) -> str:
    """Returns the text of a file that lies in the folder of a package, such as `pipeline.web`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def content_policy(script: str = "", *directives: str) -> str:
    """Returns a content security policy: no requests, pictures only as data URIs, and no script except `script`.

    Args:
        script: The exact text between the script tags; empty for a page without a script.
        directives: Additional directives, such as `connect-src 'self'`.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = [f"script-src 'sha256-{digest}'"] if script else []
    fixed = ["default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", "base-uri 'none'", "form-action 'none'"]
    return "; ".join([*fixed, *allowed, *directives])


def html_page(
    title: str, body: str, style: str, script: str = "", directives: tuple[str, ...] = (), attributes: str = ""
) -> bytes:
    """Returns a page in the project's theme, encoded as UTF-8.

    Args:
        title: Plain text; it is escaped here.
        body: HTML between the body tags, without the script.
        style: CSS that follows the theme's.
        script: JavaScript at the end of the body; the page's policy allows no other script.
        directives: Additional directives of the page's content policy.
        attributes: HTML attributes of the body tag.
    """
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(script, *directives)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{asset("pipeline.web", "theme.css")}{style}'
        f"</style>\n</head>\n<body{f' {attributes}' * bool(attributes)}>\n{body}\n"
        f"{f'<script>{script}</script>' if script else ''}\n</body>\n</html>\n"
    )
    return page.encode("utf-8", "replace")
