"""A bucket on this machine: the part of Google Cloud Storage's JSON API that gcsfs and TensorStore use."""

import base64
import email
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

OBJECT = re.compile(r"/(?:download/|upload/)?storage/v1/b/(?P<bucket>[^/]+)/o(?:/(?P<name>[^/]+)(?P<rest>/.*)?)?$")


@dataclass
class Bucket:
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # content and generation, by name
    uploads: dict[str, tuple[str, bytearray]] = field(default_factory=dict)  # unfinished resumable uploads
    generation: int = 1
    lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, name: str, data: bytes) -> dict:
        with self.lock:
            self.generation += 1
            self.objects[name] = (data, self.generation)
            return self.about(name)

    def about(self, name: str) -> dict:
        data, generation = self.objects[name]
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(data)),
            "generation": str(generation), "metageneration": "1", "timeCreated": now, "updated": now,
            "storageClass": "STANDARD", "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        }  # fmt: skip

    def list(self, prefix: str, delimiter: str) -> dict:
        names, folders = [], set[str]()
        for name in sorted(self.objects):
            if name.startswith(prefix):
                head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
                if found:
                    folders.add(prefix + head + delimiter)
                else:
                    names.append(name)
        return {"kind": "storage#objects", "items": [self.about(n) for n in names], "prefixes": sorted(folders)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(BrokenPipeError):  # gcsfs closes connections early
                self.wfile.write(data)

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.body = self.read_body()
        with self.bucket.lock:
            if url.path.startswith("/batch/"):
                return self.batch()
            if url.path.startswith("/resume/"):
                return self.resume(url.path)
            match = OBJECT.match(url.path)
            if not match:
                return self.answer(200, {"kind": "storage#bucket", "name": "bucket", "location": "US"})
            name = unquote(match["name"]) if match["name"] else None
            if self.command == "POST":
                return self.copy(name, match["rest"]) if name else self.upload()
            if name is None:
                return self.answer(200, self.bucket.list(self.query.get("prefix", ""), self.query.get("delimiter", "")))
            if name not in self.bucket.objects:
                return self.answer(404, {"error": {"code": 404, "message": f"no {name}"}})
            if self.command == "DELETE":
                del self.bucket.objects[name]
                return self.answer(204)
            return self.read(name)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def read(self, name: str) -> None:
        data, generation = self.bucket.objects[name]
        if self.query.get("alt") != "media":
            return self.answer(200, self.bucket.about(name))
        headers = {"x_goog_generation": str(generation), "x_goog_metageneration": "1"}
        span = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self.answer(200, data, **headers)
        first = int(span[1]) if span[1] else max(0, len(data) - int(span[2]))
        last = min(int(span[2]) if span[1] and span[2] else len(data) - 1, len(data) - 1)
        if first > last:
            return self.answer(416)
        return self.answer(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)

    def upload(self) -> None:
        name, data = self.query.get("name", ""), self.body
        kind = self.query.get("uploadType")
        if kind == "multipart":
            header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = email.message_from_bytes(header + self.body).get_payload()
            name = json.loads(about.get_payload())["name"]
            data = self.body.split(b"\r\n\r\n" if b"\r\n\r\n" in self.body else b"\n\n", 2)[2]
            data = data[: data.rindex(b"\r\n--" if b"\r\n--" in data else b"\n--")]
        if kind == "resumable":
            name = name or json.loads(self.body)["name"]
            self.bucket.uploads[str(len(self.bucket.uploads))] = (name, bytearray())
            where = f"http://{self.headers['Host']}/resume/{len(self.bucket.uploads) - 1}"
            return self.answer(200, Location=where)
        wanted = self.query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != self.bucket.objects.get(name, (b"", 0))[1]:
            return self.answer(412, {"error": {"code": 412, "message": "generation"}})
        return self.answer(200, self.bucket.put(name, data))

    def resume(self, path: str) -> None:
        name, data = self.bucket.uploads[path.rsplit("/", 1)[1]]
        data += self.body
        if self.headers.get("Content-Range", "/*").endswith("/*"):
            return self.answer(308, Range=f"bytes=0-{len(data) - 1}")
        return self.answer(200, self.bucket.put(name, bytes(data)))

    def copy(self, name: str, rest: str) -> None:
        if rest == "/compose":
            parts = [source["name"] for source in json.loads(self.body)["sourceObjects"]]
            return self.answer(200, self.bucket.put(name, b"".join(self.bucket.objects[part][0] for part in parts)))
        if name not in self.bucket.objects:
            return self.answer(404, {"error": {"code": 404, "message": f"no {name}"}})
        about = self.bucket.put(unquote(rest.rsplit("/o/", 1)[1]), self.bucket.objects[name][0])
        if rest.startswith("/moveTo"):
            del self.bucket.objects[name]
        size = about["size"]
        done = {"done": True, "resource": about, "totalBytesRewritten": size, "objectSize": size}
        return self.answer(200, done if rest.startswith("/rewriteTo") else about)

    def batch(self) -> None:
        """A batch request with several deletions."""
        boundary, parts = "done", []
        for number, asked in enumerate(re.findall(rb"DELETE (\S+)", self.body), 1):
            match = OBJECT.match(urlsplit(asked.decode()).path)
            found = self.bucket.objects.pop(unquote(match["name"]), None) is not None
            status = "204 No Content" if found else "404 Not Found"
            parts.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-x+{number}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        text = "".join(parts) + f"--{boundary}--\r\n"
        return self.answer(200, text.encode(), Content_Type=f"multipart/mixed; boundary={boundary}")


@contextmanager
def fake_gcs():
    """(the bucket, the environment variables that make gs:// refer to it)."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"bucket": bucket}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield (
            bucket,
            {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "FSSPEC_GCS_TOKEN": "anon",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would query another service
            },
        )
    finally:
        server.shutdown()
