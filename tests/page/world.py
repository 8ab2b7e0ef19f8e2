"""World: nodes of the program on free ports of this machine, whose folder goes with them."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from browser import DIRECT, Failure, until

REPOSITORY = Path(__file__).resolve().parents[2]


def pleach():
    named = os.environ.get("PLEACH")
    candidates = [named] if named else [REPOSITORY / "target" / kind / "pleach" for kind in ("debug", "release")]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return str(Path(candidate).resolve())
    raise Failure("there is no node: run `cargo build`, or name one in PLEACH")


def etcdctl():
    peers = os.environ.get("PLEACH_PEERS_DIR", REPOSITORY / "target" / "peers")
    found = shutil.which(os.environ.get("ETCDCTL") or Path(peers) / "etcdctl") or shutil.which("etcdctl")
    if not found:
        raise Failure("etcdctl is missing: run `tests/peers/build etcdctl`, or name one in ETCDCTL")
    return found


def free_ports(count):
    """Ports that nobody has, all at once so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def fetch(url, method="GET", within=5):
    """The status, the headers and the body of an answer; `None` where there is none."""
    try:
        with DIRECT.open(urllib.request.Request(url, method=method), timeout=within) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()
    except OSError:
        return None


def raise_open_files():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Node:
    """A node that can be killed and started again."""

    def __init__(self, work, name, topology=""):
        self.name, self.folder = name, work / name
        self.folder.mkdir()
        self.port, self.admin_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = f"http://127.0.0.1:{self.admin_port}/"
        (self.folder / "topology.yaml").write_text(topology, encoding="utf-8")
        self.has_routes = bool(topology)
        self.log = work / f"{name}.log"
        self.process = None
        self.start()

    def start(self):
        command = [pleach(), "serve", "--name", self.name, "--data-dir", "data",
                   "--listen-client-urls", self.url, "--listen-metrics-urls", self.page.rstrip("/")]
        if self.has_routes:
            command += ["--topology", "topology.yaml"]
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, preexec_fn=raise_open_files)
        until(f"the node {self.name} is ready", self.is_ready, within=60)

    def is_ready(self):
        if self.process.poll() is not None:
            raise Failure(f"the node {self.name} ended: {self.log.read_text(encoding='utf-8')[-800:]}")
        answer = fetch(self.page + "readyz", within=2)
        return answer is not None and answer[0] == 200

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)

    def hang(self, is_hanging):
        """Takes what is sent to it and answers nothing, or goes on."""
        self.process.send_signal(signal.SIGSTOP if is_hanging else signal.SIGCONT)

    def etcdctl(self, *words):
        subprocess.run([etcdctl(), "--endpoints", self.url, *words], check=True, stdout=subprocess.DEVNULL, timeout=20)

    def put(self, key, value):
        self.etcdctl("put", key, value)

    def watch(self, prefix):
        """A watcher, which ends when its process is killed."""
        return subprocess.Popen([etcdctl(), "--endpoints", self.url, "watch", "--prefix", prefix],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class World:
    """All nodes of a test, and their folder."""

    def __init__(self):
        self.work = Path(tempfile.mkdtemp(prefix="pleach-page-"))
        self.nodes = []

    def node(self, name, topology=""):
        node = Node(self.work, name, topology)
        self.nodes.append(node)
        return node

    def end(self):
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()
        shutil.rmtree(self.work)


def backend(name, endpoint, prefix):
    return f"- name: {name}\n  endpoint: {endpoint}\n  prefix: {{prefix: {prefix}}}\n"


def tree(world):
    """A root with stores of its own, one that is not there, and a node behind it which has routes too."""
    eu = world.node("eu", "backends:\n" + backend("eu-pods", "sqlite://./pods.db", "eu/pods/")
                    + backend("eu-leases", "sqlite://./leases.db", "eu/leases/"))
    [nobody] = free_ports(1)
    root = world.node("root", "backends:\n" + backend("pods", "sqlite://./pods.db", "pods/")
                      + backend("secrets", "sqlite://./secrets.db", "secrets/")
                      + backend("events", f"postgres://someone:hidden@127.0.0.1:{nobody}/events", "events/")
                      + backend("eu", eu.url, "eu/"))
    return root, eu


def large(world, count):
    """A node with so many routes."""
    routes = (backend(f"tenant-{at:03}", f"sqlite://./tenant-{at:03}.db", f"tenants/{at:03}/")
              for at in range(count))
    return world.node("many", "backends:\n" + "".join(routes))
