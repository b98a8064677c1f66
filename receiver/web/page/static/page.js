// The pages work without this module. It keeps them up to date, turns moments into local time, and moves the slider.

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("receiver", { createHTML: (text) => text })
  : { createHTML: (text) => text };
const base = document.body.dataset.base;

// --- Moments ---------------------------------------------------------------------------------------------------------

const styles = {
  full: { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" },
  short: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
  time: { hour: "2-digit", minute: "2-digit", second: "2-digit" },
  hour: { hour: "2-digit", minute: "2-digit" },
};
const formats = Object.fromEntries(
  Object.entries(styles).map(([name, style]) => [name, new Intl.DateTimeFormat(undefined, { hourCycle: "h23", ...style })]),
);

function duration(seconds) {
  const whole = Math.round(seconds);
  if (seconds < 60) return `${whole} s`;
  for (const [size, name, small, word] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= size) {
      const rest = Math.floor((whole % size) / small);
      return `${Math.floor(whole / size)} ${name}${rest ? ` ${rest} ${word}` : ""}`;
    }
  }
  return `${whole} s`;
}

function showMoment(element) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  if (element.dataset.moment === "until") {
    const seconds = (at.getTime() - Date.now()) / 1000;
    element.textContent = Math.abs(seconds) < 1 ? "now" : seconds >= 0 ? `in ${duration(seconds)}` : `${duration(-seconds)} ago`;
  } else if (element.dataset.moment === "short") {
    const now = new Date();
    const style = at.toDateString() === now.toDateString() ? "time" : at.getFullYear() === now.getFullYear() ? "short" : "full";
    element.textContent = formats[style].format(at);
  } else if (element.dataset.moment in formats) {
    element.textContent = formats[element.dataset.moment].format(at);
  }
  element.title = `${formats.full.format(at)} here, ${at.toISOString()} UTC`;
}

const showMoments = (root) => root.querySelectorAll("time[data-moment]").forEach(showMoment);
setInterval(() => {
  if (!document.hidden) document.querySelectorAll('time[data-moment="until"]').forEach(showMoment);
}, 1000);

// --- Before and after ------------------------------------------------------------------------------------------------

function prepareCompare(root) {
  const stage = root.querySelector("[data-stage]");
  const before = root.querySelector(".before");
  const split = root.querySelector("[data-split]");
  const flip = root.querySelector("[data-flip]");
  const zoom = root.querySelector("[data-zoom]");
  let held = false;
  // At 1:1 the split is one of what is in view, wherever that was scrolled to.
  const show = () => {
    const value = held ? 100 : Number(split.value);
    const zoomed = stage.classList.contains("zoomed");
    stage.style.setProperty("--split", zoomed ? `${stage.scrollLeft + (value * stage.clientWidth) / 100}px` : `${value}%`);
    stage.style.setProperty("--middle", zoomed ? `${stage.scrollTop + stage.clientHeight / 2}px` : "50%");
    split.setAttribute("aria-valuetext", `${value} % before, ${100 - value} % after`);
  };
  split.addEventListener("input", show);
  stage.addEventListener("scroll", show);
  show();

  const toPointer = (event) => {
    const box = before.getBoundingClientRect();
    split.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    show();
  };
  // At 1:1 a mouse drags the picture; a finger scrolls it by itself.
  stage.addEventListener("pointerdown", (event) => {
    const zoomed = stage.classList.contains("zoomed");
    if (event.button !== 0 || (zoomed && event.pointerType !== "mouse")) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    if (!zoomed) toPointer(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!stage.hasPointerCapture(event.pointerId)) return;
    if (stage.classList.contains("zoomed")) stage.scrollBy(-event.movementX, -event.movementY);
    else toPointer(event);
  });

  const hold = (pressed) => {
    held = pressed;
    show();
    flip.setAttribute("aria-pressed", String(held));
  };
  flip.addEventListener("pointerdown", () => hold(true));
  for (const name of ["pointerup", "pointercancel", "pointerleave", "blur"]) flip.addEventListener(name, () => hold(false));
  flip.addEventListener("keydown", (event) => {
    if (event.key === " " || event.key === "Enter") hold(true);
  });
  flip.addEventListener("keyup", () => hold(false));

  zoom.addEventListener("click", () => {
    const zoomed = stage.classList.toggle("zoomed");
    zoom.setAttribute("aria-pressed", String(zoomed));
    if (zoomed) {
      stage.tabIndex = 0;
      stage.scrollTo((stage.scrollWidth - stage.clientWidth) / 2, (stage.scrollHeight - stage.clientHeight) / 2);
    } else stage.removeAttribute("tabindex");
    show();
  });
  flip.hidden = zoom.hidden = false;
  root.querySelectorAll("[data-sides] select").forEach((select) => select.addEventListener("change", () => choose(root, select)));
}

// Another picture on one side; the address keeps the choice, for the next renewal and for the people that it is sent to.
function choose(root, select) {
  const image = root.querySelector(`[data-side="${select.name}"]`);
  const option = select.selectedOptions[0];
  image.src = base + option.dataset.path;
  image.removeAttribute("width");
  image.removeAttribute("height");
  image.alt = `${select.name === "left" ? "Left" : "Right"}: ${option.text}`;
  root.querySelector(`[data-tag="${select.name}"]`).textContent = option.text;
  const address = new URL(location.href);
  address.searchParams.set(select.name, select.value);
  history.replaceState(null, "", address);
}

// An input is kept for a day after its job's end: then there is nothing to compare with.
function prepareMissing(image) {
  const gone = () => image.closest(".compare, .single")?.classList.add("no-before");
  if (image.complete && image.naturalWidth === 0) gone();
  else image.addEventListener("error", gone, { once: true });
}

// --- Small things ----------------------------------------------------------------------------------------------------

function prepareCopy(button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy)?.textContent ?? "";
    let word = "Copied";
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      word = "Press Ctrl+C";
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    }
    const label = button.firstChild;
    const said = label.textContent;
    label.textContent = word;
    setTimeout(() => (label.textContent = said), 1500);
  });
}

function prepare(root) {
  showMoments(root);
  root.querySelectorAll("[data-compare]").forEach(prepareCompare);
  root.querySelectorAll("img[data-before]").forEach(prepareMissing);
  root.querySelectorAll("[data-copy]").forEach(prepareCopy);
}

// --- Sending ---------------------------------------------------------------------------------------------------------

function prepareSend(form) {
  const file = form.querySelector("input[type=file]");
  const drop = form.querySelector("[data-drop]");
  const chosen = form.querySelector("[data-chosen]");
  const provider = form.querySelector("[data-options]");
  const show = () =>
    chosen.replaceChildren(
      ...[...file.files].map((picture) => {
        const item = document.createElement("li");
        item.textContent = `${picture.name}, ${Math.max(1, Math.round(picture.size / 1000))} kB`;
        return item;
      }),
    );
  file.addEventListener("change", show);
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) {
      file.files = event.dataTransfer.files;
      show();
    }
  });
  // The chosen provider is none to compare with.
  const others = () => {
    for (const input of form.querySelectorAll("input[name=also]")) input.closest("label").hidden = input.value === provider.value;
  };
  others();
  provider.addEventListener("change", async () => {
    others();
    const wanted = provider.value;
    const address = new URL(location.href);
    address.search = new URLSearchParams({ provider: wanted, fragment: provider.dataset.options });
    const answer = await fetch(address, { cache: "no-store" });
    if (answer.ok && provider.value === wanted) {
      document.getElementById("options").replaceChildren(parsed(await answer.text()));
    }
  });
  form.addEventListener("submit", () => {
    document.getElementById("send-note").textContent = "Sending…";
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key === "/") {
    const search = document.querySelector("[data-slash]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
    return;
  }
  const links = [...document.querySelectorAll("[data-keys] tbody .name a")];
  const step = { j: 1, k: -1 }[event.key];
  if (!step || !links.length) return;
  const place = links.indexOf(document.activeElement);
  links[Math.min(Math.max(place + step, 0), links.length - 1)].focus();
});

// --- Live ------------------------------------------------------------------------------------------------------------

// What the server sent last for each keyed part: parts that stay the same are left alone, with all that was done to them.
const sent = new WeakMap();
const keyed = (element) => [...element.querySelectorAll("[id]")];
const regions = [...document.querySelectorAll("[data-fragment]")];

// Values that differ each time, such as the key of a form, make no difference.
function text(element) {
  const copy = element.cloneNode(true);
  copy.querySelectorAll("[data-volatile]").forEach((input) => input.removeAttribute("value"));
  return copy.outerHTML;
}

function remember(region) {
  for (const element of [region, ...keyed(region)]) sent.set(element, text(element));
}

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  return template.content;
}

// Make `old` what `fresh` is, part by part.
function renew(old, fresh) {
  const known = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  const all = [...fresh.children];
  if (!all.length || !all.every((child) => child.id)) {
    const open = new Set([...old.querySelectorAll("details[open][id]")].map((element) => element.id));
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceChildren(...fresh.childNodes);
    for (const element of old.querySelectorAll("details[id]")) if (open.has(element.id)) element.open = true;
    if (focused) document.getElementById(focused)?.focus();
    prepare(old);
    return;
  }
  let place = null;
  for (const child of all) {
    const before = known.get(child.id);
    known.delete(child.id);
    const html = text(child);
    let shown = before;
    if (!before) {
      shown = child;
      sent.set(child, html);
      prepareNew(child);
    } else if (sent.get(before) !== html) {
      sent.set(before, html);
      const nested = child.tagName === "TABLE" ? [before.tBodies[0], child.tBodies[0]] : [before, child];
      before.className = child.className;
      renew(...nested);
      if (child.tagName === "TR") flash(before);
    }
    const next = place ? place.nextElementSibling : old.firstElementChild;
    if (shown !== next) old.insertBefore(shown, next);
    place = shown;
  }
  for (const gone of known.values()) gone.remove();
}

function prepareNew(element) {
  for (const inner of keyed(element)) sent.set(inner, text(inner));
  prepare(element);
  if (element.tagName === "TR") flash(element);
}

function flash(row) {
  row.classList.remove("changed");
  requestAnimationFrame(() => row.classList.add("changed"));
}

class Watch {
  constructor(indicator, words) {
    this.indicator = indicator;
    this.words = words;
    this.due = new Set();
    this.restUntil = 0;
    this.source = null;
    this.connected = false;
  }

  start() {
    document.addEventListener("visibilitychange", () => this.connect());
    document.addEventListener("selectionchange", () => this.soon());
    this.connect();
  }

  connect() {
    if (document.hidden) {
      this.source?.close();
      this.source = null;
      return this.say();
    }
    if (this.source) return this.soon();
    this.source = new EventSource(`${base}live`);
    this.source.addEventListener("open", () => {
      this.connected = true;
      this.say();
      // What changed before, since the page was made, is not known.
      this.everything();
    });
    this.source.addEventListener("error", () => {
      this.connected = false;
      this.say();
    });
    this.source.addEventListener("change", (event) => this.changed(JSON.parse(event.data)));
    return this.say();
  }

  everything() {
    this.changed({ jobs: null, deliveries: true, providers: true, endpoints: true });
  }

  changed(what) {
    for (const region of regions) {
      if ("still" in region.dataset) continue;
      const wanted = region.dataset.topics.split(" ");
      const jobs = what.jobs === null || what.jobs.length > 0;
      const touched = wanted.some((topic) =>
        topic.startsWith("job:") ? what.jobs === null || what.jobs.includes(topic.slice(4)) : topic === "jobs" ? jobs : what[topic],
      );
      if (touched) this.due.add(region);
    }
    this.soon();
  }

  paused() {
    const selection = getSelection();
    const selected = selection && !selection.isCollapsed && regions.some((region) => region.contains(selection.anchorNode));
    const active = document.activeElement;
    const typing = active?.matches("input:not([type=range]), select, textarea") && regions.some((region) => region.contains(active));
    return document.hidden || selected || typing;
  }

  say() {
    this.indicator.hidden = false;
    const state = !this.connected ? "off" : this.paused() && this.due.size ? "held" : "on";
    this.indicator.dataset.state = state;
    this.words.textContent = { off: "Connecting", held: "Paused while you select", on: "Live" }[state];
  }

  soon() {
    this.say();
    if (!this.due.size || this.paused() || this.timer) return;
    this.timer = setTimeout(() => this.fetch(), Math.max(this.restUntil - Date.now(), 50));
  }

  async fetch() {
    this.timer = null;
    if (this.paused()) return this.say();
    const began = Date.now();
    const regionsDue = [...this.due];
    this.due.clear();
    for (const region of regionsDue) {
      const address = new URL(location.href);
      address.hash = "";
      for (const name of ["done", "count", "refused", "more"]) address.searchParams.delete(name);
      address.searchParams.set("fragment", region.dataset.fragment);
      try {
        const answer = await fetch(address, { headers: { accept: "text/html" }, redirect: "manual", cache: "no-store" });
        if (answer.type === "opaqueredirect") return location.reload();
        if (answer.ok) {
          const fresh = parsed(await answer.text());
          if (this.paused()) this.due.add(region);
          else renew(region, fresh);
        } else if (answer.status >= 500) this.due.add(region);
      } catch {
        this.due.add(region);
      }
    }
    // A slow server or many changes: ask less often.
    this.restUntil = Date.now() + Math.max(1500, 10 * (Date.now() - began));
    return this.soon();
  }
}

// Addresses that people share have no empty filters in them.
for (const form of document.querySelectorAll('form.filters[method="get"]')) {
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
}
document.querySelectorAll("#send-form").forEach(prepareSend);
// A secret is in the answer to a post: going on from here must not post again.
if (document.querySelector("[data-once]")) history.replaceState(null, "", new URL(`${base}endpoints`, location.href));
regions.forEach(remember);
prepare(document);
if ("live" in document.body.dataset && regions.length) {
  new Watch(document.getElementById("live"), document.getElementById("live-words")).start();
}
