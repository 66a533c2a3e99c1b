"use strict";

const EVERY_MS = 2000, KEPT = 60;
const $ = (id) => document.getElementById(id);
const messages = [];
let running = null, samples = [], began = null;

// ---- the server ----

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function wrong(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the server answered ${response.status}`;
}

// ---- the playground ----

function show(role, text) {
  const line = document.createElement("p");
  line.className = "message";
  const name = document.createElement("b");
  name.textContent = role;
  const content = document.createElement("span");
  content.textContent = text;
  line.append(name, content);
  $("messages").append(line);
  $("messages").scrollTop = $("messages").scrollHeight;
  return content;
}

function parameters() {
  const given = {};
  for (const name of ["temperature", "top_p", "seed", "max_tokens"]) {
    if ($(name).value !== "") given[name] = Number($(name).value);
  }
  return given;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function send(text) {
  const system = $("system").value.trim();
  messages.push({ role: "user", content: text });
  show("You", text);
  const content = show("Model", "");
  const start = performance.now();
  let first = null, answer = "", usage = null;
  running = new AbortController();
  busy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), signal: running.signal,
      body: JSON.stringify({
        messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
        stream: true, stream_options: { include_usage: true }, ...parameters(),
      }),
    });
    if (!response.ok) throw new Error(await wrong(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const piece = event.choices[0]?.delta.content;
      if (!piece) continue;
      first ??= performance.now();
      answer += piece;
      content.textContent = answer;
      $("messages").scrollTop = $("messages").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      content.parentElement.classList.add("failed");
      content.textContent = `${answer}\n${error.message}`.trim();
    }
  }
  if (answer) messages.push({ role: "assistant", content: answer }); else messages.pop();
  if (first !== null) $("last").textContent = timing(start, first, usage);
  running = null;
  busy(false);
}

function timing(start, first, usage) {
  const parts = [`first token ${seconds((first - start) / 1000)}`];
  const tokens = usage?.completion_tokens, rest = (performance.now() - first) / 1000;
  if (tokens > 1) parts.push(`${tokens} tokens, ${number((tokens - 1) / rest)} tokens/s`);
  return parts.join(", ");
}

function busy(now) {
  $("send").disabled = now;
  $("stop").disabled = !now;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  send(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => {
  running?.abort();
  messages.length = 0;
  $("messages").replaceChildren();
  $("prompt").focus();
});

// ---- the figures ----

const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3));
const seconds = (value) => (value < 1 ? `${number(value * 1000)} ms` : `${number(value)} s`);

function parsed(text) {
  const found = { buckets: {} };
  for (const line of text.split("\n")) {
    const match = /^(\w+?)(?:\{(\w+)="([^"]*)"\})? (\S+)$/.exec(line);
    if (!match) continue;
    const [, name, label, value, figure] = match;
    if (label === "le") (found.buckets[name] ??= []).push([value === "+Inf" ? Infinity : Number(value), Number(figure)]);
    else found[label ? `${name} ${value}` : name] = Number(figure);
  }
  return found;
}

// The bound below which a share of the observations since `before` lies, between bounds by proportion.
function quantile(now, before, name, share) {
  const after = now.buckets[name] ?? [], old = before.buckets[name] ?? [];
  const counts = after.map(([bound, count], at) => [bound, count - (old[at]?.[1] ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (!total) return null;
  let low = 0, below = 0;
  for (const [bound, count] of counts) {
    if (count >= share * total) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (share * total - below)) / (count - below);
    }
    [low, below] = [bound, count];
  }
  return low;
}

function figures(now, last, first) {
  const per = (name) => (now[name] - last[name]) / ((now.at - last.at) / 1000);
  const since = (name) => now[name] - first[name];
  const rate = per("tokc_generation_tokens_total"), price = Number($("price").value);
  const hours = (now.at - first.at) / 3.6e6, made = since("tokc_generation_tokens_total");
  const prompt = since("tokc_prompt_tokens_total");
  const wait = (name, share) => {
    const value = quantile(now, first, `${name}_bucket`, share);
    return value === null ? "–" : seconds(value);
  };
  return [
    ["Output tokens/s", number(rate), rate],
    ["Running, waiting", `${now.tokc_requests_running}, ${now.tokc_requests_waiting}`, now.tokc_requests_running],
    ["Cache in use", `${((100 * now.tokc_kv_pages_used) / now.tokc_kv_pages).toFixed(1)} %`, now.tokc_kv_pages_used],
    ["Prompt found in cache", prompt ? `${((100 * since("tokc_cached_tokens_total")) / prompt).toFixed(1)} %` : "–"],
    ["First token p50, p99", `${wait("tokc_ttft_seconds", 0.5)}, ${wait("tokc_ttft_seconds", 0.99)}`],
    ["Per token p50, p99", `${wait("tokc_tpot_seconds", 0.5)}, ${wait("tokc_tpot_seconds", 0.99)}`],
    ["Preempted", number0(since("tokc_preemptions_total"))],
    ["USD per 1M tokens now", price && rate ? money((price / 3600 / rate) * 1e6) : "–"],
    ["Paid, USD per 1M since", price && made ? `${money(price * hours)}, ${money(((price * hours) / made) * 1e6)}` : "–"],
  ];
}

const number0 = (value) => value.toLocaleString("en");
const money = (value) => `$${value.toPrecision(3)}`;

function card(at, [name, value, graphed]) {
  const cards = $("cards");
  while (cards.children.length <= at) {
    const made = document.createElement("dl");
    made.className = "card";
    made.append(document.createElement("dt"), document.createElement("dd"));
    cards.append(made);
  }
  const [title, figure] = cards.children[at].children;
  title.textContent = name;
  figure.textContent = value;
  if (graphed === undefined) return;
  const own = cards.children[at];
  own.history = [...(own.history ?? []), graphed].slice(-KEPT);
  own.querySelector("svg")?.remove();
  const most = Math.max(...own.history, 1e-9), step = 100 / (KEPT - 1), start = KEPT - own.history.length;
  const points = own.history.map((y, x) => `${((start + x) * step).toFixed(2)},${(27 - (26 * y) / most).toFixed(2)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  own.append(svg);
}

async function look() {
  try {
    const response = await fetch("metrics", { headers: headers() });
    $("key-field").hidden = response.status !== 401 && !$("key").value;
    if (!response.ok) throw new Error(await wrong(response));
    const now = { ...parsed(await response.text()), at: performance.now() };
    began ??= now;
    samples = [...samples, now].slice(-2);
    if (samples.length === 2) figures(now, samples[0], began).forEach((row, at) => card(at, row));
    const ready = await fetch("ready");
    say(ready.ok ? "ready" : await ready.json().then((body) => body.status), !ready.ok);
    if ($("model").textContent === "tokc") {
      const listed = await fetch("v1/models", { headers: headers() }).then((answer) => answer.json());
      $("model").textContent = document.title = listed.data[0].id;
    }
  } catch (error) {
    say(error.message, true);
  }
}

$("key").addEventListener("change", look);
look().then(() => setTimeout(look, 300));
setInterval(look, EVERY_MS);
