"""The page at `/`: a playground and live figures, for a person with a browser.

It loads nothing from elsewhere and may not: its Content-Security-Policy allows this server alone. What it
shows it asks the API for, with the key that the person types in.
"""

from importlib.resources import files

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def page_routes() -> list[Route]:
    """Return the routes of the page's files, which need no key."""
    return [_route(path, name, media_type) for path, (name, media_type) in PAGES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = files(__name__).joinpath(name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}

    async def endpoint(_: HttpRequest) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, endpoint)
