// Keeps the page as the tree is: fetches it again, and takes over what has changed. What is open, typed, focused
// and scrolled to stays. All that it shows, the server has written; without this file the page can be read as well.
"use strict";
(() => {
  const EVERY_MS = 2000;
  // Longer than the node waits for what lies below.
  const ANSWER_WITHIN_MS = 5000;
  // A search begins when nobody has typed for so long.
  const TYPED_MS = 150;

  const form = document.getElementById("asked");
  const live = document.getElementById("live");
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  // What people opened and closed themselves, by id, and what this file did; when something was, as first told.
  const chosen = new Map();
  const opened = new Map();
  const times = new Map();
  let answered = new Date();
  let asking = null;
  let timer = 0;

  // --- Taking over ---

  // Says a time of day beside how long ago it was. Answers take their time, so small differences are none.
  const timed = (fresh) => {
    for (const age of fresh.querySelectorAll("[data-age]")) {
      let time = Date.now() - 1000 * Number(age.dataset.age);
      const known = times.get(age.id);
      if (known !== undefined && Math.abs(known - time) < 3000) time = known;
      times.set(age.id, time);
      age.textContent += `, ${age.dataset.clock} ${clock.format(time)}`;
    }
  };

  const sameAttributes = (old, fresh) => {
    const isKept = (name) => name === "open" && old.localName === "details";
    for (const { name, value } of fresh.attributes) {
      if (!isKept(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!isKept(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    // Nothing closes around who is in it.
    if (old.localName === "details" && old.open !== fresh.open && !old.contains(document.activeElement)) {
      opened.set(old.id, fresh.open);
      old.open = fresh.open;
    }
  };

  // Makes `old` what `fresh` is. What has an id is moved and not made anew.
  const take = (old, fresh) => {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    sameAttributes(old, fresh);
    const ids = new Set([...fresh.children].map((child) => child.id));
    for (const child of [...old.children]) if (child.id && !ids.has(child.id)) child.remove();
    const known = new Map([...old.children].map((child) => [child.id, child]));
    let at = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      let same = null;
      if (next.id) same = known.get(next.id) ?? null;
      else if (at && !at.id && at.nodeName === next.nodeName) same = at;
      if (!same) {
        old.insertBefore(next, at);
        continue;
      }
      if (same === at) at = at.nextSibling;
      else old.insertBefore(same, at);
      take(same, next);
    }
    while (at) {
      const left = at;
      at = at.nextSibling;
      left.remove();
    }
  };

  const show = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    if (!fresh.getElementById("tree")) throw new Error("it is another page");
    for (const details of fresh.querySelectorAll("details")) {
      if (chosen.has(details.id)) details.open = chosen.get(details.id);
      if (!document.getElementById(details.id)) opened.set(details.id, details.open);
    }
    timed(fresh);
    const focused = document.activeElement;
    for (const id of ["figures", "about", "tree"]) take(document.getElementById(id), fresh.getElementById(id));
    document.title = fresh.title;
    document.body.dataset.node = fresh.body.dataset.node;
    // Who was moved has lost it.
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  };

  // --- Asking ---

  // Only what is new is read out.
  const say = (text, isBad) => {
    if (live.textContent !== text) live.textContent = text;
    live.classList.toggle("bad", isBad);
    document.body.classList.toggle("stale", isBad);
  };

  const ask = async () => {
    clearTimeout(timer);
    asking?.abort();
    const mine = (asking = new AbortController());
    const begin = performance.now();
    const limit = setTimeout(() => mine.abort(), ANSWER_WITHIN_MS);
    try {
      const answer = await fetch(location.pathname + location.search, { signal: mine.signal, cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (mine !== asking) return;
      show(text);
      answered = new Date();
      say("Live", false);
    } catch {
      if (mine !== asking) return;
      const since = clock.format(answered);
      say(`No answer from ${document.body.dataset.node} since ${since}. What you see is from then.`, true);
    } finally {
      clearTimeout(limit);
      // A large tree on a slow machine is not asked for all the time.
      if (mine === asking && !document.hidden) {
        timer = setTimeout(ask, Math.max(EVERY_MS, 4 * (performance.now() - begin)));
      }
    }
  };

  // --- What people do ---

  const go = (address) => {
    history.pushState(null, "", address);
    ask();
  };

  const asForm = () => {
    const query = new URLSearchParams(new FormData(form));
    if (!query.get("q")) query.delete("q");
    if (query.get("show") === "all") query.delete("show");
    if (query.get("sort") === "trouble") query.delete("sort");
    return query.size > 0 ? `/?${query}` : "/";
  };

  const fillForm = () => {
    const query = new URLSearchParams(location.search);
    form.elements.q.value = query.get("q") ?? "";
    form.elements.show.value = query.get("show") === "trouble" ? "trouble" : "all";
    form.elements.sort.value = query.get("sort") ?? "trouble";
  };

  let typed = 0;
  form.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      history.replaceState(null, "", asForm());
      ask();
    }, TYPED_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typed);
    go(asForm());
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("nav.columns a");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      go(link.href);
      fillForm();
    }
  });
  // With a mouse, a key, or by finding something in it.
  const toggled = ({ target }) => {
    if (target.localName !== "details" || opened.get(target.id) === target.open) return;
    opened.set(target.id, target.open);
    chosen.set(target.id, target.open);
  };
  document.addEventListener("toggle", toggled, true);
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    form.elements.q.focus();
    form.elements.q.select();
  });
  addEventListener("popstate", () => {
    fillForm();
    ask();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) ask();
  });

  form.classList.add("live");
  for (const details of document.querySelectorAll("details")) opened.set(details.id, details.open);
  timed(document);
  say("Live", false);
  timer = setTimeout(ask, EVERY_MS);
})();
