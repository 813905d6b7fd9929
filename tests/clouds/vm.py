"""The VMs of a slice as processes of this machine: its startup script in a real shell, everything around it stood in.

A metadata server on loopback answers as cloud.google.com/compute/docs/metadata does: only with `Metadata-Flavor:
Google`, attributes of the instance by name, and a token of its service account. The same server stands in for the REST
side of Secret Manager (`versions/V:access`) and of the Cloud TPU API (`DELETE .../queuedResources/Q?force=true`), which
have to be asked with that token.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from deploy.provisioners.vm.node import Parameters, metadata
from nanocode.config.settings import Cloud

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKEN = "a-token"
NETWORK = f"127.{1 + os.getpid() % 250}.{1 + os.getpid() // 250 % 250}"
"""Of the VMs' addresses, which are loopback's: other tests that run now have VMs as well."""


class Site:
    """What the VMs of all slices reach: secrets, and the right to delete their own slice."""

    def __init__(self, secrets: Mapping[str, str], delete: Callable[[str], object]) -> None:
        self.secrets, self.delete = dict(secrets), delete
        self.deletions: list[str] = []


def vms_of(
    run: str, slice: str, hosts: int, cloud: Cloud, folder: Path, site: Site, app: Path, images: str | None = None
) -> list["Vm"]:
    """Those of a slice of the run at this address. `images`: that the registry has, if not the one of `cloud`."""
    assert cloud.image is not None
    parameters = Parameters(
        run=run,
        slice=slice,
        name=f"nanocode-run-{slice}",
        parent="projects/lab/locations/us-east5-b",
        image=cloud.image,
        labels={},
    )
    told = metadata(parameters, cloud)
    registry = cloud.image if images is None else images
    return [Vm(folder / f"vm-{worker}", told, worker, hosts, site, app, registry) for worker in range(hosts)]


class Vm:
    """One VM. It ends by itself when its slice is deleted: then, or sooner, call `vanish`."""

    def __init__(
        self, folder: Path, metadata: Mapping[str, str], worker: int, hosts: int, site: Site, app: Path, images: str
    ) -> None:
        """`app`: where containers run. `images`: those that the registry has."""
        self.attributes = {
            **metadata,
            "agent-worker-number": str(worker),
            "worker-network-endpoints": ",".join(f"unknown:unknown:{NETWORK}.{2 + host}" for host in range(hosts)),
            "accelerator-type": f"v6e-{4 * hosts if hosts > 1 else 8}",
        }
        self.site, self.folder = site, folder
        (folder / "containers").mkdir(parents=True)
        (folder / "bin").mkdir()
        docker = (HERE / "docker").read_text().replace("/usr/bin/env python3", sys.executable, 1)
        (folder / "bin/docker").write_text(docker)
        (folder / "bin/docker").chmod(0o755)
        (folder / "startup.sh").write_text(metadata["startup-script"])
        self._server = _serve(self)
        address = f"127.0.0.1:{self._server.server_address[1]}"
        self._environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "GCE_METADATA_HOST": address,
            "SECRETS_API": f"http://{address}",
            "TPU_API": f"http://{address}",
            "JAX_COORDINATOR_BIND_ADDRESS": f"{NETWORK}.2:8482",  # that port of our own addresses alone
            "VM_STATE": str(folder / "state"),
            "CONTAINERS": str(folder / "containers"),
            "IMAGES": images,
            "APP": str(app),
            "SECONDS_BETWEEN_LOOKS": "0.3",
            "SECONDS_BETWEEN_WATCHERS": "0.3",
        }
        self.boot()

    def boot(self) -> None:
        """Again, after a reboot: what was in memory is gone."""
        for path in sorted((self.folder / "state").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        with (self.folder / "serial").open("ab") as serial:
            self._script = subprocess.Popen(
                ["bash", str(self.folder / "startup.sh")],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=serial, stderr=serial, start_new_session=True,
            )  # fmt: skip

    @property
    def serial(self) -> str:
        """What the script and its containers have printed."""
        return (self.folder / "serial").read_text()

    @property
    def calls(self) -> list[str]:
        """Of docker."""
        path = self.folder / "containers/calls"
        return path.read_text().splitlines() if path.exists() else []

    def warn(self) -> None:
        """What the machine does when it is about to be taken away: every container is told to leave."""
        for path in (self.folder / "containers").iterdir():
            if path.is_file() and path.name != "calls":
                with suppress(OSError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGTERM)

    def crash(self) -> None:
        """It stops, with everything on it, from one moment to the next."""
        with suppress(psutil.NoSuchProcess):
            script = psutil.Process(self._script.pid)
            for process in [script, *script.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        for path in (self.folder / "containers").iterdir():
            if path.is_file() and path.name != "calls":
                with suppress(OSError, ValueError):
                    os.kill(int(path.read_text()), signal.SIGKILL)
                path.unlink(missing_ok=True)
        self._script.wait()

    def vanish(self) -> None:
        self.crash()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Of the server."""
        instance = "/computeMetadata/v1/instance/"
        if path.startswith(instance):
            if headers.get("Metadata-Flavor") != "Google":
                return 403, "Missing Metadata-Flavor:Google header."
            name = path.removeprefix(instance)
            if name == "service-accounts/default/token":
                return 200, json.dumps({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})
            value = self.attributes.get(name.removeprefix("attributes/"))
            return (200, value) if value is not None else (404, "")
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, ""
        if method == "DELETE" and path.startswith("/v2/") and path.endswith("?force=true"):
            name = path.removeprefix("/v2/").removesuffix("?force=true")
            self.site.deletions.append(name)
            self.site.delete(name)
            return 200, "{}"
        secret = self.site.secrets.get(path.removeprefix("/v1/").removesuffix(":access"))
        if secret is None:
            return 404, ""
        return 200, json.dumps({"payload": {"data": base64.b64encode(secret.encode()).decode()}})


def _serve(vm: Vm) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            code, text = vm.answer(self.command, self.path, dict(self.headers.items()))
            self.send_response(code)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_DELETE = _reply

        def log_message(self, format: str, *arguments: object) -> None:
            """Not on the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server
