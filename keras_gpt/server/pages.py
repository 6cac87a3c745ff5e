"""The page at `/`: three files, by fixed names."""

from importlib import resources

from fastapi import APIRouter, Request, Response

# what a browser may do for the page: nothing but what this server gives it
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}

router = APIRouter(include_in_schema=False)


async def _show(request: Request) -> Response:
    name, kind = FILES[request.scope["route"].path]
    content = (resources.files("keras_gpt.server") / "page" / name).read_bytes()
    return Response(content, headers=_HEADERS, media_type=kind)


for _path in FILES:
    router.get(_path)(_show)
