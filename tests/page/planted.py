"""Planted: defects that the checks must notice. A page that is spoiled on its way stands in for the node's."""

import http.server
import threading
import urllib.error
import urllib.request

import browser as waiting
import checks
from browser import DIRECT, Failure
from world import free_ports

# A defect, the file that it is in, what is there, what is put there instead, and the check that must fail.
DEFECTS = [
    ("the focus is lost when routes move", "/page.js", "focused.focus({ preventScroll: true })", "0",
     checks.a_node_that_goes_away_is_first_with_the_reason_and_comes_back),
    ("what people opened closes by itself", "/page.js", "chosen.has(details.id)", "false",
     checks.routes_open_and_close_by_keyboard_and_stay_so),
    ("nothing is fetched again", "/page.js", "EVERY_MS = 2000", "EVERY_MS = 2 ** 30",
     checks.a_write_is_seen_without_loading_anew),
    ("what is typed is lost", "/page.js", "    timed(fresh);", "    form.reset(); timed(fresh);",
     checks.a_search_goes_by_keyboard_and_keeps_the_focus),
    ("nobody is told that no answer comes", "/page.js", "say(`No answer", "void (`No answer",
     checks.a_node_that_is_gone_is_told_with_the_time_and_what_was_there_stays),
    ("something turns round while nothing comes", "/page.js", "say(`No answer",
     "document.body.ariaBusy = 'true'; say(`No answer",
     checks.a_node_that_is_gone_is_told_with_the_time_and_what_was_there_stays),
    ("figures need a wide window", "/page.css", ".figures {", ".figures { min-width: 500px;",
     checks.a_narrow_window_has_no_sideways_scrolling),
    ("the dark is light", "/page.css", "--ground: #12161a", "--ground: #f6f7f8",
     checks.the_dark_is_dark_and_all_can_be_read_in_both),
    ("quiet words are faint", "/page.css", "--quiet: #5a6672", "--quiet: #9aa6b2",
     checks.the_dark_is_dark_and_all_can_be_read_in_both),
    ("a choice has no name", "/", '<span class="label">Show</span>', "",
     checks.everything_that_acts_has_a_name),
    ("somebody else is asked", "/", "</header>", '<img src="http://127.0.0.2:9/" alt=""></header>',
     checks.nobody_outside_is_asked_and_nothing_can_be_changed),
    ("columns lead nowhere", "/page.js", "go(link.href)", "void 0", checks.columns_sort_and_lead_back),
]


class Spoiled:
    """A node whose page is spoiled on its way; all else is the node's."""

    def __init__(self, node, path, there, instead):
        self.node = node
        [port] = free_ports(1)
        self.page = f"http://127.0.0.1:{port}/"
        spoiled = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = urllib.request.Request(node.page.rstrip("/") + self.path, method=self.command)
                try:
                    with DIRECT.open(asked, timeout=10) as answer:
                        status, headers, body = answer.status, answer.headers, answer.read().decode()
                except urllib.error.HTTPError as error:
                    status, headers, body = error.code, error.headers, ""
                except OSError:
                    return  # as if nobody were there
                if self.path.split("?")[0] == path:
                    spoiled.has_spoiled |= there in body
                    body = body.replace(there, instead)
                data = body.encode()
                self.send_response(status)
                for name in ("Content-Type", "Content-Security-Policy"):
                    if headers[name]:
                        self.send_header(name, headers[name])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

            def log_message(self, *_):
                pass

        self.has_spoiled = False
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __getattr__(self, name):
        return getattr(self.node, name)

    def end(self):
        self.server.shutdown()
        self.server.server_close()


def run(open_browser, world, root, eu):
    """Whether each is noticed, and nothing where nothing is spoiled; one line for each."""
    are_noticed = True
    within, waiting.WITHIN_S = waiting.WITHIN_S, 8
    nothing = [("", "/", "</main>", "</main>", check) for check in dict.fromkeys(it[-1] for it in DEFECTS)]
    for defect, path, there, instead, check in nothing + DEFECTS:
        spoiled, browser = Spoiled(root, path, there, instead), open_browser()
        try:
            check(browser, world, spoiled, eu)
            noticed = "; ".join(browser.complaints())
        except Failure as failure:
            noticed = str(failure)
        if not spoiled.has_spoiled:
            noticed = ""  # there is nothing to be noticed: the defect is out of date
        are_noticed &= (noticed != "") == (defect != "")
        said = f"noticed: {noticed[:90]}" if noticed else "not noticed"
        print(f"{defect or check.__name__}: {said}", flush=True)
        browser.close()
        spoiled.end()
        for node in (root, eu):
            if node.process.poll() is not None:
                node.start()
    waiting.WITHIN_S = within
    return are_noticed
