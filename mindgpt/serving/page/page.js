// The page of `mindgpt serve`: it uses the server's own API and nothing from elsewhere.
"use strict";

const CHINESE = {
  key: "服务器的 API 密钥", use_key: "使用密钥", generate_title: "续写文本", prompt: "提示文本", settings: "采样设置",
  max_tokens: "新 token 数", temperature: "温度（0 为贪心）", top_p: "Top-p", top_k: "Top-k（0 为全部）", repetition_penalty: "重复惩罚",
  seed: "随机种子（空为随机）", stop: "遇到此文本停止", generate: "生成", stop_button: "停止", perplexity_title: "文本的困惑度",
  scored: "文本", measure: "计算", empty_output: "生成的文本显示在这里，每个 token 可查看候选。", empty_scored: "颜色越深，模型越没有料到。",
  running: "正在生成……", measuring: "正在计算……", stopped: "已停止", tokens: (n, s) => `${n} 个 token，${s} 秒`,
  ended: (reason) => reason === "length" ? "，达到长度上限" : "，到达结尾", perplexity: (p, n) => `困惑度 ${p}（${n} 个 token）`,
  gone: "连接不到服务器。它可能已停止；重新启动后再试。", broken: "连接中断，文本可能不完整。", busy: "服务器繁忙，请稍后再试。",
  needs_key: "服务器需要 API 密钥。", too_short: "文本至少需要两个 token。", first: "第一个 token，没有概率",
};
const ENGLISH = {
  empty_output: "The text appears here. Each token shows its candidates.", empty_scored: "Tokens the model did not expect are darker.",
  running: "generating …", measuring: "measuring …", stopped: "stopped", tokens: (n, s) => `${n} tokens in ${s} s`,
  ended: (reason) => reason === "length" ? ", as many as asked for" : ", to its end", perplexity: (p, n) => `perplexity ${p} (${n} tokens)`,
  gone: "The server cannot be reached. It may have ended: start it again and retry.",
  broken: "The connection broke; the text may be incomplete.", busy: "The server is busy. Try again in a moment.",
  needs_key: "The server asks for an API key.", too_short: "The text needs two tokens or more.", first: "first token: no probability",
};
const chinese = (navigator.languages || [navigator.language]).find((one) => /^(zh|en)/i.test(one))?.toLowerCase().startsWith("zh");
const words = chinese ? CHINESE : ENGLISH;
const by = (id) => document.getElementById(id);
const CANDIDATES = 5;
let running = null; // the AbortController of what is generated

function translate() {
  if (chinese) {
    document.documentElement.lang = "zh-Hans";
    for (const element of document.querySelectorAll("[data-text]")) element.textContent = CHINESE[element.dataset.text];
  }
  by("output").dataset.empty = words.empty_output;
  by("scored-output").dataset.empty = words.empty_scored;
}

function headers() {
  const key = sessionStorage.getItem("key");
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

/** An error whose message is for the person. */
class Refused extends Error {}

async function ask(path, body, signal) {
  let response;
  try {
    response = await fetch(path, body
      ? { method: "POST", headers: headers(), body: JSON.stringify(body), signal }
      : { headers: headers(), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(words.gone);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    by("key-form").hidden = false;
    by("key").focus();
    throw new Refused(words.needs_key);
  }
  if (response.status === 429) throw new Refused(words.busy);
  const content = await response.json().catch(() => null);
  throw new Refused(content?.error?.message || `HTTP ${response.status}`);
}

/** The JSON objects of server-sent events, as they arrive. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Refused(words.broken); // without [DONE]
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Refused(event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refused) throw error;
    throw new Refused(words.broken);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function problem(error) {
  by("problem").hidden = !error;
  by("problem").textContent = error ? error.message : "";
}

/** Makes elements of tokens. A part of a character comes as `bytes:\xe4\xbd`; its tokens share one element. */
class Tokens {
  #decoder = new TextDecoder();
  #parts = [];

  /** The elements of the field `logprobs` of a choice. */
  add(logprobs) {
    const made = [];
    logprobs.tokens.forEach((token, at) => {
      const bytes = /^bytes:((\\x[0-9a-f]{2})+)$/.exec(token)?.[1].match(/[0-9a-f]{2}/g).map((one) => parseInt(one, 16));
      const text = bytes
        ? this.#decoder.decode(Uint8Array.from(bytes), { stream: true })
        : this.#decoder.decode() + token; // what was left of a character that never ended
      this.#parts.push({ token, logprob: logprobs.token_logprobs[at], top: logprobs.top_logprobs?.[at] });
      if (text || !bytes) {
        made.push(tokenOf(text, this.#parts));
        this.#parts = [];
      }
    });
    return made;
  }
}

/** A piece of text that shows its candidates on hover, focus and tap. */
function tokenOf(text, parts) {
  const span = document.createElement("span");
  span.className = "token";
  span.tabIndex = 0;
  span.textContent = text;
  const known = parts.map((part) => part.logprob).filter((value) => value !== null);
  span.dataset.logprob = Math.min(0, ...known);
  for (const event of ["mouseenter", "focus", "click"]) span.addEventListener(event, () => showCandidates(span, parts));
  for (const event of ["mouseleave", "blur"]) span.addEventListener(event, hideCandidates);
  return span;
}

function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "∅";
}

/** A table of what a token could have been. top: text -> log-probability. */
function tableOf({ token, logprob, top }) {
  if (logprob === null) return document.createTextNode(words.first);
  const rows = new Map(Object.entries(top || {})).set(token, logprob);
  const table = document.createElement("table");
  for (const [name, value] of [...rows].sort((one, other) => other[1] - one[1])) {
    const row = table.insertRow();
    if (name === token) row.className = "chosen";
    row.insertCell().textContent = visible(name);
    row.insertCell().textContent = `${(100 * Math.exp(value)).toFixed(value > -2.3 ? 1 : 2)} %`;
  }
  return table;
}

function showCandidates(span, parts) {
  const box = by("candidates");
  box.replaceChildren(...parts.map(tableOf));
  span.setAttribute("aria-describedby", "candidates");
  box.hidden = false;
  const place = span.getClientRects()[0] || span.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  box.style.left = `${Math.max(8, Math.min(place.left, width - box.offsetWidth - 8)) + scrollX}px`;
  const below = place.bottom + box.offsetHeight + 8 < innerHeight || place.top < box.offsetHeight + 8;
  box.style.top = `${(below ? place.bottom + 4 : place.top - box.offsetHeight - 4) + scrollY}px`;
}

function hideCandidates() {
  by("candidates").hidden = true;
}

function number(id) {
  const value = by(id).value.trim();
  return value === "" ? undefined : Number(value);
}

async function generate() {
  if (running) return;
  problem(null);
  const output = by("output");
  const started = performance.now();
  const tokens = new Tokens();
  let count = 0;
  let reason = "";
  running = new AbortController();
  by("generate").disabled = true;
  by("stop-button").disabled = false;
  by("status").textContent = words.running;
  const prompt = by("prompt").value;
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  output.replaceChildren(given);
  try {
    const response = await ask("v1/completions", {
      prompt, stream: true, logprobs: CANDIDATES, max_tokens: number("max_tokens"), temperature: number("temperature"),
      top_p: number("top_p"), top_k: number("top_k"), repetition_penalty: number("repetition_penalty"), seed: number("seed"),
      ...(by("stop").value ? { stop: by("stop").value } : {}),
    }, running.signal);
    for await (const event of events(response)) {
      const choice = event.choices[0];
      if (!choice) continue;
      output.append(...tokens.add(choice.logprobs));
      count += choice.logprobs.tokens.length;
      reason = choice.finish_reason || reason;
    }
    by("status").textContent = words.tokens(count, seconds(started)) + words.ended(reason);
  } catch (error) {
    by("status").textContent = error.name === "AbortError" ? `${words.stopped}: ${words.tokens(count, seconds(started))}` : "";
    if (error.name !== "AbortError") problem(error);
  } finally {
    running = null;
    by("generate").disabled = false;
    by("stop-button").disabled = true;
  }
}

function seconds(started) {
  return ((performance.now() - started) / 1000).toFixed(1);
}

async function measure() {
  problem(null);
  by("measure").disabled = true;
  by("perplexity").textContent = words.measuring;
  by("scored-output").replaceChildren();
  try {
    const body = { prompt: by("scored").value, echo: true, max_tokens: 0, logprobs: CANDIDATES };
    const { choices } = await (await ask("v1/completions", body)).json();
    const logprobs = choices[0].logprobs;
    const values = logprobs.token_logprobs.filter((value) => value !== null);
    if (!values.length) throw new Refused(words.too_short);
    const perplexity = Math.exp(-values.reduce((sum, value) => sum + value, 0) / values.length);
    by("perplexity").textContent = words.perplexity(perplexity.toPrecision(4), values.length);
    const tokens = new Tokens().add(logprobs);
    for (const span of tokens) { // a step for each 2 nats
      span.dataset.surprise = Math.min(4, Math.floor(-span.dataset.logprob / 2));
    }
    by("scored-output").append(...tokens);
  } catch (error) {
    by("perplexity").textContent = error.message;
  } finally {
    by("measure").disabled = false;
  }
}

async function nameModel() {
  try {
    const { data } = await (await ask("v1/models")).json();
    by("model").textContent = data.map((model) => model.id).join(", ");
    by("key-form").hidden = true;
    problem(null);
  } catch (error) {
    problem(error);
  }
}

translate();
by("generate").addEventListener("click", generate);
by("stop-button").addEventListener("click", () => running?.abort());
by("measure").addEventListener("click", measure);
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", by("key").value);
  nameModel();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    document.activeElement === by("scored") ? measure() : generate();
  } else if (event.key === "Escape") {
    running?.abort();
    hideCandidates();
  }
});
nameModel();
