"""Pictures: what the README shows of the page, of the same tree that the checks have."""

import threading

from browser import Browser, check, until
from checks import route, until_route
from png import small
from world import REPOSITORY

# What a picture may take in the repository.
BYTES_MAX = 150_000


def take(driver, root, eu):
    """A tree at work, with one store that is not there, in both schemes."""
    folder = REPOSITORY / "docs" / "src" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    is_over = threading.Event()

    def work():
        at = 0
        while not is_over.is_set():
            key = ("pods", "secrets", "eu/pods", "eu/leases", "configmaps")[at % 5]
            root.put(f"/registry/{key}/default/{at % 400}", "a value of some length " * 10)
            root.etcdctl("get", f"/registry/{key}/default/{at % 400}")
            at += 1

    writers = [threading.Thread(target=work) for _ in range(3)]
    for writer in writers:
        writer.start()
    watchers = [root.watch(f"/registry/{key}/") for key in ("pods", "secrets", "pods/default")]
    root.etcdctl("lease", "grant", "600")
    browser = Browser(driver)
    try:
        browser.size(1280, 860)
        browser.open(root.page)
        until_route(browser, "eu", "the node behind is there", lambda it: it["state"] == "ok")
        begin = browser.script("return performance.now()")
        # So that what is measured of late is of this work.
        until("there was some work", lambda: browser.script("return performance.now()") > begin + 20_000, within=60)
        for scheme in ("light", "dark"):
            browser.emulate(prefers_color_scheme=scheme)
            until("the tree is whole", lambda: route(browser, "events")["isOpen"])
            height = browser.script("return document.querySelector('main').getBoundingClientRect().bottom")
            browser.size(1280, min(int(height), 1000))
            picture = small(browser.picture())
            check("the picture is small enough", len(picture) <= BYTES_MAX, len(picture))
            (folder / f"page-{scheme}.png").write_bytes(picture)
            print(f"docs/src/images/page-{scheme}.png: {len(picture)} bytes")
    finally:
        is_over.set()
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
        for writer in writers:
            writer.join()
        browser.close()
