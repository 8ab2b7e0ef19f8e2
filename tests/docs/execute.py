"""Does what a page tells its reader to do, in a folder and a network of its own.

The blocks of a page, by the first word of their info string:

  console           commands behind `$ `, each ending with success; the lines below one are what it prints. A
                    command whose line ends with `\\` goes on in the next. Where no lines stand below, anything
                    may be printed
  console fails     the same, and each command ends with an error
  console runs=NAME a command that goes on in a terminal of its own; the lines below it appear there, one behind the
                    other; with `any-order` behind NAME, in any order
  text shows=NAME   lines that the terminal NAME shows by now, in the same way
  text              a picture, or what is no command
  … not-run: WHY    not run, and counted

and in comments: `<!-- file: NAME -->` above a block: it is written to that file; `<!-- stop: NAME -->` ends the
terminal NAME as Ctrl-C does, `<!-- kill: NAME -->` as SIGKILL does; `<!-- wait: S -->` lets so many seconds go by, where
the page says that time counts and nothing shows it; `<!-- postgres -->` starts a PostgreSQL with the
user `pleach` at 127.0.0.1:5432, and `<!-- mariadb -->` a MariaDB at 127.0.0.1:3306, both with the password `secret`.

`…` stands for anything within a line, and a line that is only `…` for any lines.
"""

import os
import re
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from markdown import Block

COMMAND_S = 60
SHOWN_S = 30
LOG_SHOWN = 15

DATABASES = {
    "postgres": """
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
mkdir .postgres && chown postgres .postgres
as() { setpriv --reuid=postgres --regid=postgres --init-groups -- "$@"; }
echo secret > .password && chmod 644 .password
as "$bin/initdb" -D .postgres/data -U pleach -A scram-sha-256 --pwfile=.password --no-sync > .postgres.log
as "$bin/pg_ctl" -D .postgres/data -w -o "-k $PWD/.postgres -c listen_addresses=127.0.0.1" -l .postgres/log start \\
    > /dev/null
""",
    "mariadb": """
set -e
mkdir .mariadb && chown mysql .mariadb
export TMPDIR="$PWD/.mariadb"  # its names are made of process ids, which each page has from 1 on
as() { setpriv --reuid=mysql --regid=mysql --init-groups -- "$@"; }
as mariadb-install-db --no-defaults --datadir="$PWD/.mariadb/data" --skip-test-db \\
    --auth-root-authentication-method=normal > .mariadb.log 2>&1 || { cat .mariadb.log; exit 1; }
as mariadbd --no-defaults --datadir="$PWD/.mariadb/data" --socket="$PWD/.mariadb/socket" --tmpdir="$PWD/.mariadb" \\
    --bind-address=127.0.0.1 --pid-file="$PWD/.mariadb/pid" --skip-name-resolve > .mariadb.log 2>&1 < /dev/null &
for _ in $(seq 300); do
    mariadb --no-defaults --socket=.mariadb/socket --user=root -e "CREATE USER pleach@'%' IDENTIFIED BY 'secret';
        GRANT ALL ON *.* TO pleach@'%'" > /dev/null 2>&1 && exit 0
    sleep 0.1
done
cat .mariadb.log
exit 1
""",
}


class Wrong(Exception):
    """What a page says is not so."""

    def __init__(self, line, text):
        super().__init__(text)
        self.line = line


def line_pattern(line):
    return re.compile(".*?".join(re.escape(part) for part in line.rstrip().split("…")) + r"\s*\Z")


def is_as_shown(shown, said):
    """Whether the lines that were said are those that are shown."""
    if not shown:
        return not said
    if shown[0].strip() == "…":
        return any(is_as_shown(shown[1:], said[at:]) for at in range(len(said) + 1))
    return bool(said) and bool(line_pattern(shown[0]).match(said[0])) and is_as_shown(shown[1:], said[1:])


def appear_in(shown, said):
    """Whether the lines stand in what was said, in this order."""
    at = 0
    for line in shown:
        if line.strip() == "…":
            continue
        pattern = line_pattern(line)
        while at < len(said) and not pattern.match(said[at]):
            at += 1
        if at == len(said):
            return False
        at += 1
    return True


def commands(block):
    """The commands of a block with their lines and what is shown below each."""
    found, goes_on = [], False
    for at, line in enumerate(block.lines, block.line + 1):
        if goes_on:
            found[-1][1] += "\n" + line
            goes_on = line.endswith("\\")
        elif line.startswith("$ "):
            found.append([at, line[2:], []])
            goes_on = line.endswith("\\")
        elif found:
            found[-1][2].append(line)
        else:
            raise Wrong(at, "a block of commands begins with `$ `")
    for one in found:
        while one[2] and not one[2][-1].strip():
            one[2].pop()
    return found


def parts(block, shown):
    """What must appear one behind the other."""
    return [[line] for line in shown] if "any-order" in block.words else [shown]


def plain(text):
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


class Shell:
    """One bash for a page, so that what is exported counts further down."""

    def __init__(self, folder, environment):
        self.folder = folder
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, env=environment, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.mark = f"-- {os.getpid()} --"

    def run(self, command):
        """Returns the lines of a command, and how it ended."""
        (self.folder / ".command").write_text(command + "\n")
        line = f". {self.folder}/.command < /dev/null\nprintf '\\n%s %d\\n' '{self.mark}' $?\n"
        self.process.stdin.write(line.encode())
        said, end = b"", time.monotonic() + COMMAND_S
        ending = re.compile(rb"(?s)(.*)\n" + re.escape(self.mark).encode() + rb" (\d+)\n\Z")
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError(f"`{command}` does not end")
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                raise TimeoutError(f"`{command}` ended the shell")
            said += part
            done = ending.match(said)
            if done:
                lines = plain(done.group(1).decode(errors="replace")).split("\n")
                while lines and not lines[-1].strip():
                    lines.pop()
                return lines, int(done.group(2))


class Terminal:
    """A command that goes on."""

    def __init__(self, name, command, shell, environment):
        self.log = shell.folder / f".{name}.log"
        # With what the page has exported so far, where it is.
        exported, _ = shell.run("pwd; export -p")
        where, settings = exported[0], "\n".join(exported[1:])
        # What is told to stop is the program itself, not a shell around it.
        script = f"{settings}\nexec {command}"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-c", script], cwd=where, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def lines(self):
        return plain(self.log.read_text(errors="replace")).split("\n")

    def wait_for(self, shown, line):
        end = time.monotonic() + SHOWN_S
        while not appear_in(shown, self.lines()):
            if time.monotonic() > end or self.process.poll() is not None:
                time.sleep(0.2)
                if appear_in(shown, self.lines()):
                    return
                ended = self.process.poll()
                how = "" if ended is None else f" (it ended with {ended})"
                raise Wrong(line, "the terminal does not show this" + how + ":\n" + indented(shown)
                            + "\n  but:\n" + indented(self.lines()[-LOG_SHOWN:]))
            time.sleep(0.05)

    def end(self, how, line):
        self.process.send_signal(how)
        try:
            ended = self.process.wait(SHOWN_S)
        except subprocess.TimeoutExpired:
            raise Wrong(line, "it does not end") from None
        if how == signal.SIGINT and self.process.args and ended not in (0, 130, -signal.SIGINT):
            raise Wrong(line, f"it ended with {ended}:\n" + indented(self.lines()[-LOG_SHOWN:]))


def indented(lines):
    return "\n".join("    " + line for line in lines)


def loopback_up():
    """A new network has its loopback interface down."""
    import fcntl
    import struct
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))


def execute(page, folder, environment):
    """Runs a page. Returns how many commands were run; raises `Wrong`."""
    loopback_up()
    shell, terminals, count = Shell(folder, environment), {}, 0
    for step in page.steps:
        if not isinstance(step, Block):
            if step.name in DATABASES:
                lines, status = shell.run(f"({DATABASES[step.name]})")
                if status != 0:
                    raise Wrong(step.line, f"{step.name} does not start:\n" + indented(lines))
            elif step.name == "wait":
                time.sleep(float(step.value))
            elif step.name in ("stop", "kill"):
                if step.value not in terminals:
                    raise Wrong(step.line, f"there is no terminal `{step.value}`")
                how = signal.SIGINT if step.name == "stop" else signal.SIGKILL
                terminals.pop(step.value).end(how, step.line)
            continue
        file = next((it.value for it in step.comments if it.name == "file"), None)
        if file:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text)
        if step.reason():
            continue
        if step.value("shows"):
            terminal = terminals.get(step.value("shows"))
            if terminal is None:
                raise Wrong(step.line, f"there is no terminal `{step.value('shows')}`")
            for part in parts(step, step.lines):
                terminal.wait_for(part, step.line)
        if step.language != "console":
            continue
        name = step.value("runs")
        for line, command, shown in commands(step):
            count += 1
            if name:
                if name in terminals:
                    raise Wrong(line, f"the terminal `{name}` is in use")
                terminals[name] = Terminal(name, command, shell, environment)
                for part in parts(step, shown):
                    terminals[name].wait_for(part, line)
                continue
            try:
                said, status = shell.run(command)
            except TimeoutError as error:
                raise Wrong(line, str(error)) from None
            if (status != 0) != ("fails" in step.words):
                raise Wrong(line, f"`{command}` ended with {status}:\n" + indented(said))
            if shown and not is_as_shown(shown, said):
                raise Wrong(line, f"`{command}` prints\n{indented(said)}\n  and the page shows\n{indented(shown)}")
    for name, terminal in terminals.items():
        if terminal.process.poll() is not None:
            raise Wrong(len(page.lines), f"the terminal `{name}` ended by itself:\n"
                        + indented(terminal.lines()[-LOG_SHOWN:]))
    for terminal in terminals.values():
        terminal.process.terminate()
    for terminal in terminals.values():
        terminal.process.wait(SHOWN_S)
    return count
