"""Checks: what the page promises, each a function whose name is the sentence, of the browser and the world."""

import time
from urllib.parse import urlsplit

from browser import check, until
from world import fetch, large

NAMES = "return [...document.querySelectorAll('.route .name')].map(it => it.textContent)"
# The live region, where the script says how it is.
LIVE = "return document.getElementById('live').textContent"
FIGURES = """return Object.fromEntries([...document.querySelectorAll('#figures > div')].map(
    it => [it.querySelector('dt').textContent, it.querySelector('dd').textContent]))"""
ROUTE = """const route = document.getElementById(arguments[0]);
    if (!route) return null;
    const line = route.querySelector('summary');
    return {state: line.querySelector('.state').textContent,
            reason: line.querySelector('.reason')?.textContent ?? '',
            isOpen: route.querySelector('details').open,
            place: [...route.parentElement.children].indexOf(route)}"""
# What is said of a route when it is opened.
FACT = """return [...document.getElementById(arguments[0]).querySelectorAll('.facts > div')].filter(
    it => it.querySelector('dt').textContent === arguments[1]).map(it => it.querySelector('dd').textContent)[0]"""
FOCUSED = """const it = document.activeElement;
    return it.localName + ' ' + (it.closest('[id]')?.id ?? '') + ' ' + (it.name ?? '')"""
# What is wider than the window, and what hides a part of itself.
WIDE = """const width = document.documentElement.clientWidth;
    return {page: document.documentElement.scrollWidth, width,
            out: [...document.querySelectorAll('body *')].filter(it => {
                const box = it.getBoundingClientRect();
                return box.width > 0 && (box.right > width + 1) && !it.closest('.skip');
            }).map(it => it.outerHTML.slice(0, 80))}"""
# The contrast of each text with what it stands on, below what WCAG asks for (AA).
FAINT = """
const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (it) => {
    for (; it; it = it.parentElement) {
        const found = rgb(getComputedStyle(it).backgroundColor);
        if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
};
const faint = [];
for (const it of document.querySelectorAll('body *')) {
    const says = [...it.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!says || !it.checkVisibility() || it.closest('.skip')) continue;
    const [a, b] = [light(rgb(getComputedStyle(it).color)), light(ground(it))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) faint.push(ratio.toFixed(2) + ' ' + it.outerHTML.slice(0, 80));
}
return faint;"""
ASKED = "return performance.getEntriesByType('resource').map(it => it.name)"
ANSWERS = "return performance.getEntriesByType('resource').filter(it => it.initiatorType === 'fetch').length"


def names(browser):
    return browser.script(NAMES)


def route(browser, way):
    return browser.script(ROUTE, "tree/" + way)


def until_route(browser, way, what, condition):
    return until(what, lambda: (lambda found: found and condition(found) and found)(route(browser, way)))


def after_answers(browser, count):
    """Waits until the page has been fetched so often again."""
    browser.script("performance.clearResourceTimings()")
    until("the page is fetched again", lambda: browser.script(ANSWERS) >= count)


def press_until(browser, what, condition, key="tab", most=60):
    """By keyboard alone: presses a key until something is so."""
    for _ in range(most):
        if condition():
            return
        browser.press(key)
    check(what, condition(), browser.script(FOCUSED))


def the_tree_is_there_with_what_is_wrong_first(browser, world, root, eu):
    browser.open(root.page)
    until_route(browser, "events", "what is not there is away", lambda it: it["state"] == "away")
    until_route(browser, "eu", "the node behind is there", lambda it: it["state"] == "ok")
    found = names(browser)
    check("every route is there", set(found) == {"events", "pods", "secrets", "eu", "eu-pods", "eu-leases", "main"},
          found)
    events = route(browser, "events")
    check("what is wrong is first, open, and says why", events["place"] == 0 and events["isOpen"], events)
    check("the reason is told", "refused" in events["reason"], events)
    whole = browser.script("return document.documentElement.textContent")
    check("no password is shown", "hidden" not in whole)
    figures = browser.script(FIGURES)
    check("figures are there", figures["Routes"] == "8" and figures["In trouble"] == "1", figures)
    check("the page has a name", "root" in browser.script("return document.title"))
    until("the page lives", lambda: browser.script(LIVE) == "Live")


def a_search_goes_by_keyboard_and_keeps_the_focus(browser, world, root, eu):
    browser.open(root.page)
    search = browser.find("input[name=q]")[0]
    press_until(browser, "the search is reached", lambda: browser.active() == search)
    browser.press(*"secrets")
    until("only what is found is there", lambda: names(browser) == ["secrets"])
    after_answers(browser, 2)
    check("what was typed stays", browser.attribute(search, "value") == "secrets")
    check("the focus stays", browser.active() == search)
    check("the address has it", browser.url().endswith("?q=secrets"), browser.url())
    count = browser.texts("#count")
    check("how many is said", count == ["1 of 8 routes with “secrets”"], count)
    browser.press("a", held="control")
    browser.press(*"EU-LEASES")
    until("what leads there is there too", lambda: names(browser) == ["eu", "eu-leases"])
    browser.press("a", held="control")
    browser.press(*"<img src=x>")
    until("nothing is found", lambda: names(browser) == [])
    check("what is typed is text", not browser.find("main img"))
    browser.press("a", held="control")
    browser.press("backspace")
    until("all is there again", lambda: len(names(browser)) == 8)
    column = browser.find("nav.columns a")[0]
    press_until(browser, "the columns are reached", lambda: browser.active() == column)
    browser.press("/")
    until("a slash leads to the search", lambda: browser.active() == search)


def routes_open_and_close_by_keyboard_and_stay_so(browser, world, root, eu):
    browser.open(root.page)
    until_route(browser, "pods", "the route is there", lambda it: not it["isOpen"])
    line = browser.find("[id='tree/pods'] summary")[0]
    press_until(browser, "the route is reached", lambda: browser.active() == line)
    outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle")
    check("the focus is seen", outline == "solid", outline)
    browser.press("enter")
    until_route(browser, "pods", "it opens", lambda it: it["isOpen"])
    after_answers(browser, 2)
    check("it stays open", route(browser, "pods")["isOpen"])
    check("the focus stays", browser.active() == line)
    browser.press("space")
    until_route(browser, "pods", "it closes", lambda it: not it["isOpen"])
    # What opened by itself stays closed too, where somebody closed it and went on.
    line = browser.find("[id='tree/events'] summary")[0]
    press_until(browser, "the route in trouble is reached", lambda: browser.active() == line)
    browser.press("enter")
    browser.press("tab")
    after_answers(browser, 2)
    check("what was closed stays closed", not route(browser, "events")["isOpen"])


def a_write_is_seen_without_loading_anew(browser, world, root, eu):
    browser.open(root.page)
    until("the page lives", lambda: browser.script(LIVE) == "Live")
    browser.script("window.isTheSame = true")
    revision, writes = browser.script(FIGURES)["Revision"], browser.script(FACT, "tree/pods", "Writes")
    root.put("/registry/pods/default/one", "1")
    until("the revision grows", lambda: browser.script(FIGURES)["Revision"] != revision)
    check("the write is counted", browser.script(FACT, "tree/pods", "Writes") != writes, writes)
    check("the page is the same", browser.script("return window.isTheSame"))


def a_node_that_goes_away_is_first_with_the_reason_and_comes_back(browser, world, root, eu):
    browser.open(root.page)
    until_route(browser, "eu", "it is there", lambda it: it["state"] == "ok" and it["place"] > 0)
    browser.script("document.querySelector(\"[id='tree/eu'] summary\").focus({preventScroll: true})")
    eu.kill()
    gone = until_route(browser, "eu", "it is away", lambda it: it["state"] == "away")
    told = gone["reason"].startswith("No answer from eu for ") and ", since " in gone["reason"]
    check("it says since when, and why", told and len(gone["reason"].split(": ", 1)[1]) > 10, gone)
    check("it is before what is well", gone["place"] <= 1, gone)
    focused = browser.script(FOCUSED)
    check("who was on it still is", focused.startswith("summary tree/eu"), focused)
    check("what is in trouble is counted", browser.script(FIGURES)["In trouble"] == "2")
    eu.start()
    back = until_route(browser, "eu", "it is back", lambda it: it["state"] == "ok")
    check("it is where it was", back["place"] > 1, back)
    until("what is below is there again", lambda: "eu-pods" in names(browser))


def a_node_that_hangs_hides_nothing_else(browser, world, root, eu):
    eu.hang(True)
    try:
        begin = time.monotonic()
        _, _, page = fetch(root.page)
        taken = time.monotonic() - begin
        check("the page does not wait for long", taken < 3, taken)
        check("the others are there", all(f'id="tree/{name}"' in page for name in ("pods", "secrets", "eu", "main")))
        browser.open(root.page)
        until_route(browser, "eu", "it is away", lambda it: it["state"] == "away" and it["reason"])
    finally:
        eu.hang(False)
    until_route(browser, "eu", "it is back", lambda it: it["state"] == "ok")


def columns_sort_and_lead_back(browser, world, root, eu):
    browser.open(root.page)
    until_route(browser, "events", "the tree is there", lambda it: it["place"] == 0)
    first = browser.find("nav.columns a")[0]
    press_until(browser, "the column is reached", lambda: browser.active() == first)
    browser.press("enter")
    own = "return [...document.querySelectorAll('[id=\"tree:routes\"] > li .name')].map(it => it.textContent)"
    until("names are in order", lambda: browser.script(own)[:2] == ["eu", "eu-leases"])
    check("the choice is shown", browser.script("return document.forms[0].elements.sort.value") == "name")
    browser.script("history.back()")
    until_route(browser, "events", "back leads back", lambda it: it["place"] == 0)


def a_narrow_window_has_no_sideways_scrolling(browser, world, root, eu):
    browser.open(root.page)
    browser.size(360, 740)
    browser.script("document.querySelectorAll('details').forEach(it => it.open = true)")
    wide = browser.script(WIDE)
    browser.size(1280, 900)
    check("nothing sticks out", wide["page"] <= wide["width"] == 360 and not wide["out"], wide)


def the_dark_is_dark_and_all_can_be_read_in_both(browser, world, root, eu):
    browser.open(root.page)
    grounds = {}
    for scheme in ("light", "dark"):
        browser.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        browser.script("document.querySelectorAll('details').forEach(it => it.open = true)")
        ground = browser.script("return getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(int(part) for part in ground[4:-1].split(",")[:3])
        faint = browser.script(FAINT)
        check(f"all can be read when it is {scheme}", not faint, faint)
    browser.emulate(prefers_color_scheme="light")
    check("the ground is light and dark", grounds["light"] > 600 and grounds["dark"] < 150, grounds)


def everything_that_acts_has_a_name(browser, world, root, eu):
    browser.open(root.page)
    browser.cdp("Accessibility.enable")
    acting = {"textbox", "searchbox", "combobox", "link", "button", "DisclosureTriangle", "list", "heading"}
    found = {}
    for node in browser.cdp("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if role in acting and not node.get("ignored"):
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    check("what acts is told to who does not see it", {"searchbox", "combobox", "DisclosureTriangle"} <= set(found),
          list(found))
    nameless = [role for role, said in found.items() if role != "list" and not all(said)]
    check("what acts has a name", not nameless, nameless)
    lines = [said for said in found["DisclosureTriangle"] if said.startswith("events")]
    check("a line says its state in words", lines and "away" in lines[0] and "reads" in lines[0], lines)


def nobody_outside_is_asked_and_nothing_can_be_changed(browser, world, root, eu):
    browser.open(root.page)
    after_answers(browser, 1)
    hosts = {urlsplit(url).netloc for url in browser.script(ASKED) if not url.startswith("data:")}
    check("only this port is asked", hosts <= {urlsplit(root.page).netloc}, hosts)
    status, headers, _ = fetch(root.page)
    policy = headers["Content-Security-Policy"]
    check("the browser is told so", status == 200 and "default-src 'none'" in policy and "http" not in policy, policy)
    check("no other page may read it", headers["Access-Control-Allow-Origin"] is None)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status = fetch(root.page, method)[0]
        check(f"{method} is refused", status == 405, status)
    status = fetch(root.url + "/")[0]
    check("it is not on the clients' port", status == 404, status)


def a_node_that_is_gone_is_told_with_the_time_and_what_was_there_stays(browser, world, root, eu):
    browser.open(root.page)
    until_route(browser, "eu", "the tree is there", lambda it: it["state"] == "ok")
    before = names(browser)
    root.kill()
    said = until("it is told", lambda: (lambda text: text.startswith("No answer") and text)(browser.script(LIVE)))
    check("it says whose and since when", said.startswith("No answer from root since ") and ":" in said, said)
    check("what was there stays", names(browser) == before)
    moving = browser.script("return document.getAnimations().length + document.querySelectorAll("
                            "'progress, [aria-busy=true], .spinner').length")
    check("nothing spins", moving == 0, moving)
    browser.complaints()  # that nobody answers is what was asked for
    root.start()
    until("it lives again", lambda: browser.script(LIVE) == "Live")
    browser.complaints()


def five_hundred_routes_stay_usable(browser, world, root, eu):
    many = large(world, 500)
    begin = time.monotonic()
    browser.open(many.page)
    until("all are counted", lambda: browser.script(FIGURES)["Routes"] == "501")
    opened = time.monotonic() - begin
    check("it opens quickly", opened < 5, opened)
    listed = len(browser.script("return [...document.querySelectorAll('summary')].filter("
                                "it => it.checkVisibility()).map(it => 1)"))
    check("a part is listed", listed < 80, listed)
    folded = browser.script("return document.querySelector('.rest > summary').textContent")
    check("the rest is folded", folded.startswith("451 more routes"), folded)
    search = browser.find("input[name=q]")[0]
    press_until(browser, "the search is reached", lambda: browser.active() == search)
    begin = time.monotonic()
    browser.press(*"tenant-437")
    until("one is found", lambda: names(browser) == ["tenant-437"], within=5)
    found = time.monotonic() - begin
    browser.press("a", held="control")
    browser.press("backspace")
    until("all are there again", lambda: len(names(browser)) == 501)
    browser.script("document.querySelector('.rest').querySelector('summary').click()")
    after_answers(browser, 2)
    check("what was unfolded stays", browser.script("return document.querySelector('.rest').open"))
    size = len(fetch(many.page)[2])
    taken = browser.script("return performance.getEntriesByType('resource').filter("
                           "it => it.initiatorType === 'fetch').map(it => Math.round(it.duration))")
    many.kill()
    return f"opened in {opened:.1f} s, searched in {found:.1f} s, {size // 1000} kB, answers in {taken} ms"


def without_scripts_it_is_read_filtered_and_opened(browser, world, root, eu):
    refresh = "meta[http-equiv=refresh]"
    browser.open(root.page)
    check("it loads anew by itself", len(browser.find(refresh)) == 1)
    # Held, since it would load anew between two looks.
    browser.open(root.page + "?hold=1")
    check("it can be held", not browser.find(refresh))
    check("every route is there", len(browser.find(".route .name")) == 8)
    states = browser.texts("[id='tree/events'] .state")
    check("states are there in words", states == ["▲ away"] or states == ["away"], states)
    search = browser.find("input[name=q]")[0]
    press_until(browser, "the search is reached", lambda: browser.active() == search)
    browser.press(*"secrets", "enter")
    until("only what is found is there", lambda: browser.texts(".route .name") == ["secrets"])
    check("the address has it", "q=secrets" in browser.url(), browser.url())
    line = "[id='tree/secrets'] summary"
    press_until(browser, "the route is reached", lambda: browser.find(line + ":focus"))
    browser.press("enter")
    until("it opens", lambda: browser.attribute(browser.find("[id='tree/secrets'] details")[0], "open"))


ALL = [
    the_tree_is_there_with_what_is_wrong_first,
    a_search_goes_by_keyboard_and_keeps_the_focus,
    routes_open_and_close_by_keyboard_and_stay_so,
    a_write_is_seen_without_loading_anew,
    a_node_that_goes_away_is_first_with_the_reason_and_comes_back,
    a_node_that_hangs_hides_nothing_else,
    columns_sort_and_lead_back,
    a_narrow_window_has_no_sideways_scrolling,
    the_dark_is_dark_and_all_can_be_read_in_both,
    everything_that_acts_has_a_name,
    nobody_outside_is_asked_and_nothing_can_be_changed,
    a_node_that_is_gone_is_told_with_the_time_and_what_was_there_stays,
    five_hundred_routes_stay_usable,
]
WITHOUT_SCRIPTS = [without_scripts_it_is_read_filtered_and_opened]
