"""The pages of the reference: what is written from the program, and what is held against the sources.

`flags.md` and `metrics.md` are written whole, by `tests/docs/run --write`. `topology.md` and `errors.md` have words of
their own; that they name what the sources name, all of it and nothing else, is checked.
"""

import re
import subprocess
import time
import urllib.request


# Flags whose default the help does not say: it is that of the key of a topology.
AS_IN_A_TOPOLOGY = {
    "--datastore-max-open-connections": "connectionPool.maxOpen",
    "--datastore-max-idle-connections": "connectionPool.maxIdle",
    "--datastore-connection-max-lifetime": "connectionPool.maxLifeTime",
    "--datastore-connection-max-idle-lifetime": "connectionPool.maxIdleLifeTime",
    "--compact-interval-jitter": "compactIntervalJitter",
    "--compact-timeout": "compactTimeout",
    "--compact-min-retain": "compactMinRetain",
}


def options_of(help_text):
    """The options of a help: their names, and the lines that tell of each. What stands behind them is left out."""
    option = re.compile(r"^ {2,6}(?:-\w, )?(--[a-z-]+)")
    entries, is_over = [], False
    for block in re.split(r"\n\s*\n", help_text.split("Options:", 1)[1]):
        lines = [line for line in block.split("\n") if line.strip()]
        if len(lines) > 1 and not lines[0].startswith(" ") and option.match(lines[1]):
            lines = lines[1:]  # the heading of a group
        for place, line in enumerate(lines):
            flag = option.match(line)
            is_over = is_over or (place == 0 and not flag)
            if flag and is_over:
                raise ValueError(f"the help has `{flag.group(1)}` behind what is no option")
            if is_over:
                break
            if flag:
                entries.append((flag.group(1), []))
            else:
                entries[-1][1].append(line.strip())
    names = [name for name, _ in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the help has `{name}` twice")
    return entries


def topology_defaults(repository):
    """What topology.md says of keys that are not given."""
    text = (repository / "docs/src/reference/topology.md").read_text()
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+?) \| [^|]+ \|$", text, re.MULTILINE))


def flags(pleach, environment, repository):
    """The page of `pleach serve`'s flags, from its help."""
    help_text = subprocess.run([pleach, "serve", "--help"], env=environment, text=True, capture_output=True, check=True)
    keys, rows = topology_defaults(repository), []
    for name, said in options_of(help_text.stdout):
        told, notes = " ".join(said), {}
        for key, held in re.findall(r"\[(env|default|possible values|alias): ?([^\]]*)\]", told):
            notes[key] = held
        told = re.sub(r"\s*\[(?:env|default|possible values|alias): ?[^\]]*\]", "", told)
        if name == "--help":
            continue
        variable = notes.get("env", "").split("=")[0]
        default = notes.get("default", "")
        values = notes.get("possible values", "").replace(", ", " or ")
        if values and values not in told:
            told += f" ({values})"
        told = told.rstrip(".") + "."
        told += f" Also `{notes['alias']}`." if "alias" in notes else ""
        told += f" Else `{default}`." if default else ""
        if name in AS_IN_A_TOPOLOGY and not re.search(r"\b(?:Else|unless)\b", told):
            key = AS_IN_A_TOPOLOGY[name]
            if key not in keys:
                raise ValueError(f"topology.md has no default of `{key}`, which `{name}` has too")
            told += f" Else {keys[key]}."
        if name == "--compact-interval-jitter":
            told += " `compactIntervalJitter` of a topology is in thousandths."
        told += f" `{variable}`" if variable else ""
        if "Examples:" in told:
            raise ValueError(f"the row of `{name}` has examples: {told}")
        rows.append(f"| `{name}` | " + told.replace("|", "\\|") + " |")
    return ("# Flags\n\n"
            "The flags of `pleach serve`, which is what `pleach` does without a command. Each can be set by the variable "
            "that\nstands last; the flag counts where both are given. Flags that etcd has mean what they mean there. This "
            "page is\nwritten from `pleach serve --help` by `tests/docs/run --write`.\n\n"
            "| flag | |\n| --- | --- |\n" + "\n".join(rows) + "\n")


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.read().decode()
    except OSError:
        return None


def metrics(pleach, environment, folder):
    """The page of metrics, from a node that has a quota and a little to tell, with a file, a child and an etcd."""
    (folder / "topology.yaml").write_text(
        "backends:\n"
        "- name: pods\n  endpoint: sqlite://./pods.db\n  prefix: {prefix: pods}\n"
        "- name: child\n  endpoint: http://127.0.0.1:2479\n  prefix: {prefix: events}\n"
        "- name: etcd\n  endpoint: http://127.0.0.1:2579\n  prefix: {prefix: leases}\n")
    etcd = "http://127.0.0.1:2579"
    commands = [
        (["etcd", "--data-dir", "etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
          "--listen-peer-urls", "http://127.0.0.1:2580"], f"{etcd}/health"),
        ([pleach, "--name", "child", "--data-dir", "child", "--listen-client-urls", "http://127.0.0.1:2479"],
         "http://127.0.0.1:2479/readyz"),
        ([pleach, "--topology", "topology.yaml", "--quota-backend-bytes", "1000000000", "--ready-requires-all"],
         "http://127.0.0.1:2379/readyz"),
    ]
    processes = []
    try:
        with open(folder / "log", "wb") as log:
            for command, url in commands:
                processes.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log))
                end = time.monotonic() + 30
                while answers(url) is None:
                    if time.monotonic() > end or processes[-1].poll() is not None:
                        raise RuntimeError(f"{command} for the metrics does not start: "
                                           + (folder / "log").read_text(errors="replace"))
                    time.sleep(0.05)
        # What is counted is there once it has happened.
        for kind in ("pods", "events", "leases"):
            subprocess.run(["etcdctl", "put", f"/registry/{kind}/a/b", "c"], env=environment, check=True,
                           capture_output=True)
        for command in (["get", "/registry/", "--prefix"], ["get", "a"]):
            subprocess.run(["etcdctl", *command], env=environment, check=True, capture_output=True)
        # Refused, since there is no value to keep.
        subprocess.run(["etcdctl", "put", "/registry/pods/a/none", "--ignore-value"], env=environment,
                       capture_output=True)
        # The child's besides: what a node can't know of a child, a sum of all keys, is missing where it has one.
        text = "".join(answers(f"http://127.0.0.1:{port}/metrics") or "" for port in (2379, 2479))
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)
    said = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (\S+) (.*)$", text, re.MULTILINE))
    rows = []
    for name in sorted(said):
        labels = set()
        for series in re.findall(rf"^{re.escape(name)}(?:_bucket|_sum|_count)?\{{(.*?)\}} ", text, re.MULTILINE):
            labels.update(re.findall(r'(\w+)="', series))
        labels = ", ".join(f"`{label}`" for label in sorted(labels - {"le"}))
        help_text = said[name].replace("\\n", " ").replace("|", "\\|")
        labels = f" By {labels}." if labels else ""
        rows.append(f"| `{name}` | {kinds.get(name, '')} | {help_text}{labels} |")
    return ("# Metrics\n\n"
            "What `/metrics` has, on the clients' port and on those of `--listen-metrics-urls`. Where etcd has the "
            "metric, it has\netcd's name. A metric that counts what has not happened yet, and one of a setting that is "
            "not given, may be missing;\n`etcd_debugging_mvcc_keys_total` is, on a node with a child. This page is written from the answers of a node and its child by\n`tests/docs/run --write`.\n\n"
            "| metric | kind | |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n")


def named_in_tables(page):
    """The code in the first cells of a page's tables."""
    found = []
    for line in page.lines:
        cell = re.match(r"^\|\s*(.*?)\s*(?<!\\)\|", line)
        if cell:
            found += re.findall(r"`([^`]+)`", cell.group(1))
    return found


def differences(what, page, on_page, in_source):
    on_page, in_source = set(on_page), set(in_source)
    for missing in sorted(in_source - on_page):
        yield f"{page.name}: the {what} `{missing}` is missing"
    for extra in sorted(on_page - in_source):
        yield f"{page.name}: there is no {what} `{extra}`"


def topology_keys(source):
    """All keys of the schema's tables, those of a mapping behind its key."""
    tables = {name: re.findall(r'"([^"]+)"', body)
              for name, body in re.findall(r"const ([A-Z_]+): &\[&str\] =\s*&\[(.*?)\];", source, re.DOTALL)}
    # What a key of a table holds.
    inner = {"regexp": "REGEXP", "namespace": "NAMESPACE", "prefix": "PREFIX", "customresource": "CUSTOM_RESOURCE",
             "backendTLS": "TLS", "connectionPool": "POOL", "indexes": "INDEX"}
    for key in tables["TOP"]:
        yield key
    for key in tables["BACKEND"]:
        yield key
        for held in tables.get(inner.get(key), []):
            yield f"{key}.{held}"


def status_texts(source):
    return re.findall(r'^\s+[A-Z_]+ = \w+, "([^"]+)";', source, re.MULTILINE)


def error_texts(source):
    """The texts of StoreError, with `…` for what is put into them."""
    for text in re.findall(r'#\[error\(\s*"((?:[^"\\]|\\.)*)"', source, re.DOTALL):
        text = re.sub(r"\\\n\s*", "", text)
        text = re.sub(r"`\{[^}]*\}`", "…", text)
        yield re.sub(r"\{[^}]*\}", "…", text)


def check(repository, pages):
    """What topology.md and errors.md lack, or have too much."""
    page = pages.get("docs/src/reference/topology.md")
    if page:
        source = (repository / "src/topology/schema.rs").read_text()
        yield from differences("key", page, named_in_tables(page), topology_keys(source))
    page = pages.get("docs/src/reference/errors.md")
    if page:
        etcds = status_texts((repository / "src/server/status.rs").read_text())
        ours = error_texts((repository / "src/model/error.rs").read_text())
        yield from differences("error", page, named_in_tables(page), [*etcds, *ours])
