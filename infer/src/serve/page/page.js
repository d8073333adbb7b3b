"use strict";
const $ = (id) => document.getElementById(id);
const DEFAULTS = { system: "You are a helpful assistant.", temperature: "0", top_p: "1", max_tokens: "256", seed: "" };
const LARGEST_FILE = 8e6, LARGEST_SIDE = 2048, RETRY_MS = 3000;
// pictures: { name, url } of one that can be asked about, { name, fault } of a file that cannot be read; `turn` once it was asked about.
let model = "", pictures = [], turns = [], running = null;

// ---- settings: in the address, behind #, where no server sees them; else as they were last time
const inAddress = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
const saved = () => { try { return JSON.parse(localStorage.getItem("settings")) || {}; } catch { return {}; } };
function showSettings(values) { for (const key in DEFAULTS) $(key).value = values[key] ?? DEFAULTS[key]; }
function readAddress() {
  const given = inAddress();
  showSettings({ ...saved(), ...given });
  if (given.question) { $("question").value = given.question; grow(); }
  const unknown = Object.keys(given).filter((key) => !(key in DEFAULTS) && key !== "question");
  if (unknown.length) say(`The address has settings that are not known: ${unknown.join(", ")}. Known: ${Object.keys(DEFAULTS).join(", ")}, question.`);
}
function writeAddress() {
  const changed = Object.keys(DEFAULTS).filter((key) => $(key).value !== DEFAULTS[key]).map((key) => [key, $(key).value]);
  history.replaceState(null, "", changed.length ? "#" + new URLSearchParams(changed) : location.pathname + location.search);
}
$("api-key").value = sessionStorage.getItem("key") || "";
$("open-settings").onclick = () => $("settings").showModal();
$("defaults").onclick = () => showSettings({});
$("settings").addEventListener("close", () => {
  localStorage.setItem("settings", JSON.stringify(Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, $(key).value]))));
  sessionStorage.setItem("key", $("api-key").value.trim());
  writeAddress();
  if (!model) loadModel();
});
addEventListener("hashchange", readAddress);

// ---- server
const GONE = "The server does not answer. See whether infer serve still runs, then try again.";
async function call(path, options = {}) {
  const key = $("api-key").value.trim();
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: "Bearer " + key } : {}) };
  let response;
  try { response = await fetch(path, { ...options, headers }); }
  catch (error) { throw error.name === "AbortError" ? error : new Error(GONE); }
  if (response.ok) return response;
  // A proxy in front of the server answers in its own words.
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The server answered ${response.status} ${response.statusText}. See whether infer serve still runs.`);
}
async function loadModel() {
  try {
    const body = await (await call("v1/models")).json();
    model = body.data[0].id;
    $("model").textContent = model;
    if ($("status").dataset.of === "model") say("");
  } catch (error) {
    say("The model's name could not be read: " + error.message, "model");
    if (error.message === GONE) setTimeout(() => model || loadModel(), RETRY_MS);
  }
}
function say(text, of = "") {
  $("status").textContent = text;
  $("status").className = text ? "error" : "hidden";
  $("status").dataset.of = of;
  if (text) $("status").scrollIntoView({ block: "nearest" });
}

// ---- pictures
async function take(files) {
  say("");
  for (const file of files) {
    const picture = { name: file.name || "pasted" };
    try {
      if (!file.type.startsWith("image/")) throw new Error("not a picture");
      const image = new Image();
      image.src = file.size > LARGEST_FILE || (await isTurned(file)) ? await drawn(file) : await dataUrl(file);
      await image.decode();
      picture.url = image.src;
    } catch (error) {
      picture.fault = error.message === "not a picture" ? error.message : "could not be read";
      say(`${picture.name}: ${picture.fault}. It will not be asked about: remove it, or choose another file.`);
    }
    pictures.push(picture);
  }
  showPictures();
  $("question").focus();
}
const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = reject;
  reader.readAsDataURL(blob);
});
/** A JPEG file that the browser turns as its EXIF orientation says. The server takes pixels as they are stored. */
async function isTurned(file) {
  if (file.type !== "image/jpeg") return false;
  const bytes = new DataView(await file.slice(0, 1 << 17).arrayBuffer());
  try {
    for (let at = 2; bytes.getUint16(at) >= 0xffc0 && bytes.getUint16(at) !== 0xffda; at += 2 + bytes.getUint16(at + 2)) {
      if (bytes.getUint16(at) !== 0xffe1 || bytes.getUint32(at + 4) !== 0x45786966) continue;
      const tiff = at + 10, little = bytes.getUint16(tiff) === 0x4949, entries = tiff + bytes.getUint32(tiff + 4, little);
      for (let entry = entries + 2, left = bytes.getUint16(entries, little); left > 0; left--, entry += 12)
        if (bytes.getUint16(entry, little) === 0x0112) return bytes.getUint16(entry + 8, little) > 1;
    }
  } catch { /* a file that ends early */ }
  return false;
}
/** The picture as it is seen, at most `LARGEST_SIDE` wide and high, as a JPEG file. */
async function drawn(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, bitmap.width * scale); canvas.height = Math.max(1, bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}
function showPictures() {
  $("pictures").replaceChildren(...pictures.map((picture, index) => {
    const item = make("li", picture.fault ? "fault" : "");
    const shown = picture.url ? make("img") : make("span", "", `${picture.name}: ${picture.fault}`);
    if (picture.url) { shown.src = picture.url; shown.alt = `Picture ${index + 1}: ${picture.name}`; shown.title = picture.name; }
    item.append(shown, button("×", () => remove(picture), `Remove ${picture.name}`));
    return item;
  }));
  $("drop").classList.toggle("small", pictures.length > 0);
}
function remove(picture) {
  const next = Math.min(pictures.indexOf(picture), pictures.length - 2);
  pictures = pictures.filter((other) => other !== picture);
  // An answer about it would stay in the conversation.
  if (picture.turn !== undefined) restart();
  showPictures();
  if (!pictures.some((other) => other.fault)) say("");
  ($("pictures").querySelectorAll("button")[next] ?? $("drop")).focus();
}
$("drop").onclick = () => $("file").click();
$("file").onchange = () => { const files = [...$("file").files]; $("file").value = ""; take(files); };
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (files.length) { event.preventDefault(); take(files); }
});
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", () => $("drop").classList.remove("over"));
addEventListener("drop", (event) => { event.preventDefault(); $("drop").classList.remove("over"); take([...event.dataTransfer.files]); });

// ---- conversation
const emptyLog = $("log").firstElementChild;
function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
function button(text, onclick, label) {
  const element = make("button", "", text);
  element.type = "button";
  element.onclick = onclick;
  if (label) { element.setAttribute("aria-label", label); element.title = label; }
  return element;
}
function restart() {
  if (running) { running.abort(); running = null; setRunning(false); }
  turns = [];
  for (const picture of pictures) delete picture.turn;
  $("log").replaceChildren(emptyLog);
}
$("restart").onclick = () => { restart(); $("question").focus(); };
function bubble(kind, text) {
  emptyLog.remove();
  const element = make("div", "message " + kind);
  const body = make("span", "body", text);
  element.append(make("span", "hidden", kind === "user" ? "You: " : "Answer: "), body);
  $("log").append(element);
  toEnd();
  return { element, body };
}
/** The last message in view: in the conversation, and on a phone in the page. */
const toEnd = () => $("log").lastElementChild.scrollIntoView({ block: "end" });
/** The end of the conversation is in view, or nearly. */
function isAtEnd() {
  const log = $("log"), message = log.lastElementChild.getBoundingClientRect();
  return message.bottom < Math.min(log.getBoundingClientRect().bottom, innerHeight) + 80;
}
function request() {
  const messages = turns.map(({ role, content }, index) => {
    const asked = pictures.filter((picture) => picture.turn === index);
    const parts = asked.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    return { role, content: parts.length ? [...parts, { type: "text", text: content }] : content };
  });
  // Without a system message the server would put the default one.
  messages.unshift({ role: "system", content: $("system").value.trim() });
  const number = (id) => Number($(id).value || DEFAULTS[id]);
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens") };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  return body;
}
function ask(question) {
  for (const picture of pictures) picture.turn ??= turns.length;
  turns.push({ role: "user", content: question });
  bubble("user", question);
  answer();
}
async function answer() {
  for (const tools of $("log").querySelectorAll(".tools")) tools.remove();
  const { element, body } = bubble("assistant", "");
  element.setAttribute("aria-busy", "true");
  const mine = running = new AbortController();
  setRunning(true);
  let text = "", begin = performance.now(), usage = null, failed = false;
  try {
    const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(request()), signal: mine.signal });
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const piece = event.choices[0]?.delta.content;
      if (piece) {
        text += piece;
        const atEnd = isAtEnd();
        body.textContent = text.trimStart();
        if (atEnd) toEnd();
      }
    }
    if (usage) element.append(make("small", "", `${usage.completion_tokens} tokens, ${((performance.now() - begin) / 1000).toFixed(1)} s`));
  } catch (error) {
    failed = error.name !== "AbortError";
    if (failed) element.append(make("span", "error", error.message));
    else element.append(make("small", "", "stopped"));
  }
  element.removeAttribute("aria-busy");
  if (running !== mine) return;
  if (text && !failed) turns.push({ role: "assistant", content: text });
  element.append(tools(element, failed));
  toEnd();
  running = null;
  setRunning(false);
}
/** Below the last answer: another one, and after an error also a way out of the conversation. */
function tools(element, failed) {
  const again = () => {
    if (running) return;
    element.remove();
    if (turns.at(-1)?.role === "assistant") turns.pop();
    answer();
  };
  const row = make("span", "tools");
  row.append(button(failed ? "Try again" : "Regenerate", again));
  if (failed) row.append(button("New chat", $("restart").onclick));
  else if (Number($("temperature").value) === 0 || $("seed").value !== "") {
    row.firstChild.title = "With temperature 0, or with a seed, the answer will be the same (Settings)";
  }
  return row;
}
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The connection to the server was lost before the answer ended.");
    });
    if (done) throw new Error("The connection to the server was closed before the answer ended.");
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
function setRunning(on) {
  $("send").disabled = on;
  $("stop").hidden = !on;
  if (!on) $("question").focus();
}
$("stop").onclick = () => running && running.abort();
addEventListener("keydown", (event) => { if (event.key === "Escape" && running && !$("settings").open) running.abort(); });
$("ask").onsubmit = async (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  const fault = pictures.find((picture) => picture.fault);
  if (fault) return say(`${fault.name}: ${fault.fault}. Remove it before you ask: the question would be about the other pictures, or none.`);
  // A question whose answer failed is replaced by this one.
  if (turns.at(-1)?.role === "user") {
    turns.pop();
    for (const picture of pictures) if (picture.turn === turns.length) delete picture.turn;
  }
  if (!model) await loadModel();
  if (!model) return;
  $("question").value = "";
  grow();
  ask(question);
};
$("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
};
const grow = () => { const box = $("question"); box.style.height = "auto"; box.style.height = box.scrollHeight + 2 + "px"; };
$("question").oninput = grow;
readAddress();
loadModel();
