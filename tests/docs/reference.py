"""The pages of the reference: what is written from the program, and what is held against the sources.

`flags.md` and `metrics.md` are written whole, by `tests/docs/run --write`. `topology.md` and `errors.md` have words of
their own; that they name what the sources name, all of it and nothing else, is checked.
"""

import re
import subprocess
import time
import urllib.request


def flags(pleach, environment):
    """The page of `pleach serve`'s flags, from its help."""
    help_text = subprocess.run([pleach, "serve", "--help"], env=environment, text=True, capture_output=True, check=True)
    entries, options = [], help_text.stdout.split("Options:", 1)[1]
    for line in options.split("\n"):
        flag = re.match(r"^\s{2,6}(?:-\w, )?\s*(--[a-z-]+)\s*(.*)$", line)
        if flag:
            entries.append((flag.group(1), []))
        elif entries and line.strip():
            entries[-1][1].append(line.strip())
    rows = []
    for name, said in entries:
        told, notes = " ".join(said), {}
        for key, held in re.findall(r"\[(env|default|possible values): ?([^\]]*)\]", told):
            notes[key] = held
        told = re.sub(r"\s*\[(?:env|default|possible values): ?[^\]]*\]", "", told)
        if name == "--help":
            continue
        variable = notes.get("env", "").split("=")[0]
        default = notes.get("default", "")
        values = notes.get("possible values", "").replace(", ", " or ")
        if values and values not in told:
            told += f" ({values})"
        told = told.rstrip(".") + "."
        told += f" Else `{default}`." if default else ""
        told += f" `{variable}`" if variable else ""
        rows.append(f"| `{name}` | " + told.replace("|", "\\|") + " |")
    return ("# Flags\n\n"
            "The flags of `pleach serve`, which is what `pleach` does without a command. Each can be set by the variable "
            "that\nstands last; the flag counts where both are given. Flags that etcd has mean what they mean there. This "
            "page is\nwritten from `pleach serve --help` by `tests/docs/run --write`.\n\n"
            "| flag | |\n| --- | --- |\n" + "\n".join(rows) + "\n")


def metrics(pleach, environment, folder):
    """The page of metrics, from a node that has a route, a quota and a little to tell."""
    (folder / "topology.yaml").write_text(
        "backends:\n- name: pods\n  endpoint: sqlite://./pods.db\n  prefix: {prefix: pods}\n")
    with open(folder / "log", "wb") as log:
        node = subprocess.Popen(
            [pleach, "--topology", "topology.yaml", "--quota-backend-bytes", "1000000000"], cwd=folder,
            env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen("http://127.0.0.1:2379/readyz", timeout=2) as answer:
                    answer.read()
                break
            except OSError:
                if time.monotonic() > end or node.poll() is not None:
                    raise RuntimeError("the node for the metrics does not start: "
                                       + (folder / "log").read_text(errors="replace")) from None
                time.sleep(0.05)
        # What is counted is there once it has happened.
        for command in (["put", "/registry/pods/a/b", "c"], ["get", "/registry/", "--prefix"], ["get", "a"]):
            subprocess.run(["etcdctl", *command], env=environment, check=True, capture_output=True)
        with urllib.request.urlopen("http://127.0.0.1:2379/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        node.terminate()
        node.wait(30)
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
            "not given, may be missing.\nThis page is written from a node's answer by `tests/docs/run --write`.\n\n"
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
             "backendTLS": "TLS", "connectionPool": "POOL"}
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
