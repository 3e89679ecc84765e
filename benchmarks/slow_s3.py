"""Read-only S3 server of one bucket that waits before each answer: ``python benchmarks/slow_s3.py FOLDER SECONDS``.

The server answers the requests of a job to its source (ListObjectsV2, HeadObject, GetObject with ranges) from the files
of a folder, concurrently, on persistent connections, with bodies sent by sendfile. A full simulation of S3 in Python
takes tens of ms of a core per request, which would dominate a measurement on two cores. The server prints its port, and
ends at the end of its input.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from xml.sax.saxutils import escape

from aiohttp import web

BUCKET = "archive"
PAGE = 1000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(folder: Path, latency_s: float) -> web.Application:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    @web.middleware
    async def wait(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(latency_s)
        return await handler(request)

    async def bucket(request: web.Request) -> web.Response:
        return web.Response(text=listing(files, request.query), content_type="application/xml")

    async def file(request: web.Request) -> web.StreamResponse:
        path = files.get(request.match_info["key"])
        if path is None:
            text = "" if request.method == "HEAD" else "<Error><Code>NoSuchKey</Code></Error>"
            return web.Response(status=404, text=text, content_type="application/xml")
        # aiohttp makes the ETag of time and size, as `listing` does.
        return web.FileResponse(path, headers={"Content-Type": "binary/octet-stream"})

    app = web.Application(middlewares=[wait])
    app.router.add_get(f"/{BUCKET}", bucket)
    app.router.add_get(f"/{BUCKET}/", bucket)
    app.router.add_get(f"/{BUCKET}/{{key:.+}}", file)
    return app


def listing(files: dict[str, Path], query: "web.MultiMapping[str]") -> str:  # type: ignore[name-defined]
    """Return a page of ListObjectsV2."""
    start = int(query.get("continuation-token", "0"))
    size = int(query.get("max-keys", PAGE))
    keys = [key for key in files if key.startswith(query.get("prefix", ""))]
    contents = []
    for key in keys[start : start + size]:
        stat = files[key].stat()
        etag = f"&quot;{stat.st_mtime_ns:x}-{stat.st_size:x}&quot;"
        contents.append(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{etag}</ETag><Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    more = start + size < len(keys)
    token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><KeyCount>{len(contents)}</KeyCount><MaxKeys>{size}</MaxKeys>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(contents)}</ListBucketResult>"
    )


async def serve(folder: Path, latency_s: float) -> None:
    runner = web.AppRunner(make_app(folder, latency_s), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
