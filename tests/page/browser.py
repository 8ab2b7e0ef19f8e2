"""Browser: a real Chromium, driven over WebDriver, which is HTTP and JSON."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

# How long a condition may take to come about, and how long a look at it is from the next.
WITHIN_S = 20
LOOK_EVERY_S = 0.05

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"enter": "\ue007", "tab": "\ue004", "space": "\ue00d", "backspace": "\ue003", "shift": "\ue008",
        "control": "\ue009", "escape": "\ue00c"}


# Nobody stands between the parts of a test, whatever the environment says.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Failure(Exception):
    """What does not hold."""


class Gone(Failure):
    """What was found is of a page that has been left meanwhile."""


def until(what, condition, within=None):
    """Waits for a condition; what it gives at last."""
    within = within or WITHIN_S
    end = time.monotonic() + within
    while True:
        try:
            found = condition()
        except Gone:
            found = None
        if found:
            return found
        if time.monotonic() > end:
            raise Failure(f"{what}: not within {within} s")
        time.sleep(LOOK_EVERY_S)


def check(what, is_so, said=""):
    if not is_so:
        raise Failure(f"{what}{': ' if said != '' else ''}{said}")


def program(*names):
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise Failure(f"none of {', '.join(names)} is there: install the packages chromium and chromium-driver")


class Driver:
    """chromedriver, on a port that it chose itself."""

    def __init__(self, work):
        self.log = open(work / "chromedriver.log", "w+", encoding="utf-8")
        self.process = subprocess.Popen([program("chromedriver"), "--port=0"], stdout=self.log,
                                        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        said = lambda: re.search(r"successfully on port (\d+)", (work / "chromedriver.log").read_text(encoding="utf-8"))
        self.url = f"http://127.0.0.1:{until('chromedriver starts', said).group(1)}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            kind = Gone if value["error"] == "stale element reference" else Failure
            raise kind(f"{method} {path}: {value['error']}: {value['message'][:400]}") from None

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=20)
        self.log.close()


class Browser:
    """A window of Chromium."""

    def __init__(self, driver, has_scripts=True):
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                     "--hide-scrollbars", "--force-prefers-reduced-motion", "--lang=en-GB",
                     "--no-first-run", "--no-proxy-server", "--disable-background-networking", "--window-size=1280,900"]
        options = {"binary": program("chromium", "chromium-browser"), "args": arguments}
        if not has_scripts:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options,
                        "goog:loggingPrefs": {"browser": "ALL"}}
        self.driver = driver
        session = driver.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.at = f"/session/{session['sessionId']}"

    def close(self):
        self.driver.call("DELETE", self.at)

    def open(self, url):
        self.driver.call("POST", self.at + "/url", {"url": url})

    def url(self):
        return self.driver.call("GET", self.at + "/url")

    def script(self, text, *arguments):
        return self.driver.call("POST", self.at + "/execute/sync", {"script": text, "args": list(arguments)})

    def cdp(self, command, **params):
        return self.driver.call("POST", self.at + "/goog/cdp/execute", {"cmd": command, "params": params})

    def find(self, selector):
        found = self.driver.call("POST", self.at + "/elements", {"using": "css selector", "value": selector})
        return [element[ELEMENT] for element in found]

    def text(self, element):
        return self.driver.call("GET", f"{self.at}/element/{element}/text")

    def texts(self, selector):
        return [self.text(element) for element in self.find(selector)]

    def attribute(self, element, name):
        return self.driver.call("GET", f"{self.at}/element/{element}/property/{name}")

    def active(self):
        return self.driver.call("GET", self.at + "/element/active")[ELEMENT]

    def press(self, *keys, held=None):
        """Keys on the keyboard, to whatever has the focus."""
        actions = []
        if held:
            actions.append({"type": "keyDown", "value": KEYS[held]})
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        if held:
            actions.append({"type": "keyUp", "value": KEYS[held]})
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self.driver.call("POST", self.at + "/actions", {"actions": [keyboard]})

    def picture(self):
        taken = self.cdp("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(taken["data"])

    def complaints(self):
        """What the browser's console says since the last time that is worse than a remark."""
        entries = self.driver.call("POST", self.at + "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def emulate(self, **features):
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.cdp("Emulation.setEmulatedMedia", features=media)

    def size(self, width, height):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=width < 600)
