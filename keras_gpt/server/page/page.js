// The page of `keras-gpt serve`. What the model writes is shown as text: this file sets
// `textContent`, never HTML.
"use strict";

const EXAMPLES = ["Once upon a time", "The capital of France is", "def add(a, b):\n"];
const HINTS = {
  prompt: "Write the beginning of a text, and the model goes on. Then click a word that it wrote, to see what else it might have written.",
  chat: "Say something, and the model answers. Then click a word of its answer, to see what else it might have said.",
};
const SAMPLING = ["temperature", "top_k", "top_p", "min_p"];
const OFF = { temperature: 1, top_k: 0, top_p: 1, min_p: 0 };
const RUN_SECONDS = 5; // between two looks at a run that goes on
const NARROW = "(max-width: 52rem)";

let about; // what the server serves
let mode = "prompt";
let writing = null; // the `AbortController` of the answer that is being written
let layerCount = 0;
let messages = []; // of the conversation, without the system's

const drafts = { prompt: "", chat: "" };

const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (of names with a dash, and `role`), children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

// ---------------------------------------------------------------- the server

function getStored(storage, name) {
  try { return storage.getItem(name); } catch { return null; }
}

function store(storage, name, value) {
  try { storage.setItem(name, value); } catch { /* private windows may refuse */ }
}

/** The response to a request; an `Error` with the server's own words if it's refused. */
async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = getStored(sessionStorage, "key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const request = { headers, signal };
  if (body) Object.assign(request, { method: "POST", body: JSON.stringify(body) });
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can’t be reached. Is it still running?");
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => ({}));
  const message = found.error?.message ?? `The server answered ${response.status}.`;
  if (response.status === 401) askForKey(key !== null);
  throw new Error(message);
}

const askJson = async (...request) => (await ask(...request)).json();

/** The objects of a stream of server-sent events. */
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

function showError(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

function askForKey(wasWrong) {
  $("key-form").hidden = false;
  $("key").setAttribute("aria-invalid", wasWrong);
  $("key").focus();
}

// ---------------------------------------------------------------- writing

/** The controls as a request has them; throws where one is out of its range. */
function readControls() {
  const fields = { max_tokens: Number($("max_tokens").value) };
  for (const input of $("controls").querySelectorAll("input[type=number]")) {
    if (!input.checkValidity()) {
      $("settings").open = true;
      input.focus();
      throw new Error(`${input.id}: ${input.validationMessage}`);
    }
  }
  for (const name of SAMPLING) fields[name] = Number($(name).value);
  if ($("seed").value) fields.seed = Number($("seed").value);
  return fields;
}

/** Put what the chosen model is given into the form of both interfaces. */
function makeGiven(text) {
  const model = $("model").value;
  if (mode === "prompt") return { model, prompt: text };
  const system = $("system").value.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  return { model, messages: [...first, ...messages, { role: "user", content: text }] };
}

/** Have the model go on from a text, or answer it. */
async function write(text) {
  if (writing || !about) return;
  showError(null);
  let fields;
  try { fields = readControls(); } catch (error) { showError(error); return; }
  const isChat = mode === "chat";
  const conversation = messages;
  const given = makeGiven(text);
  const answer = makeAnswer(text, given);
  setWriting(new AbortController());
  const start = performance.now();
  let first = null;
  let count = 0;
  try {
    const path = isChat ? "/v1/chat/completions" : "/v1/completions";
    // with the log-probabilities comes the number of tokens
    const body = { ...given, ...fields, stream: true, logprobs: isChat ? true : 0 };
    const response = await ask(path, body, writing.signal);
    for await (const { choices } of readEvents(response)) {
      for (const choice of choices) {
        const tokens = choice.logprobs?.tokens ?? choice.logprobs?.content ?? [];
        if (tokens.length && first === null) first = performance.now();
        count += tokens.length;
        answer.add(choice.text ?? choice.delta?.content ?? "");
      }
      answer.tell(count, first - start, performance.now() - first);
    }
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
  setWriting(null);
  answer.end(count > 0);
  if (isChat && count) {
    const content = answer.text;
    conversation.push({ role: "user", content: text }, { role: "assistant", content });
  } else if (isChat) {
    $("prompt").value = text; // to be sent again
  }
}

function setWriting(controller) {
  writing = controller;
  $("stop").hidden = !controller;
  $("send").hidden = Boolean(controller);
}

/** What was asked and what comes of it, with the buttons to look into it. */
function makeAnswer(asked, given) {
  const isChat = mode === "chat";
  const written = make("span");
  const prompt = make(isChat ? "p" : "span", { className: "asked", textContent: asked });
  const text = make("div", { className: "text is-writing", title: "Click a word to look into it", "aria-live": "polite" }, written);
  const stats = make("span", { className: "stats" });
  const bar = make("div", { className: "bar" }, stats);
  const article = make("article", { "aria-label": "Answer" });
  if (isChat) article.append(prompt, text, bar);
  else {
    text.prepend(prompt);
    article.append(text, bar);
  }
  $(`of-${mode}`).append(article);
  $("empty").hidden = true;
  const measureCovered = () => // the height of what the composer covers of it
    article.getBoundingClientRect().bottom + 20 - $("composer").getBoundingClientRect().top;
  const scrollToEnd = () => scrollBy(0, Math.max(0, measureCovered()));
  const isFollowed = () => measureCovered() < 80;
  scrollToEnd();

  const views = new Map();
  const answer = {
    get text() { return written.textContent; },
    add(piece) {
      const follows = isFollowed();
      written.append(piece); // a string becomes a text node
      if (follows) scrollToEnd();
    },
    tell(count, wait, seconds) {
      if (!count) return;
      const parts = [`${count} token${count > 1 ? "s" : ""}`];
      if (about.models.length > 1) parts.unshift(given.model);
      if (count > 1 && seconds > 0) {
        parts.push(`${(1000 * (count - 1) / seconds).toFixed(1)} tokens/s`);
      }
      parts.push(`first after ${(wait / 1000).toFixed(2)} s`);
      stats.textContent = parts.join(" · ");
    },
    end(isAny) {
      const follows = isFollowed();
      text.classList.remove("is-writing");
      if (!isAny) {
        article.remove();
        return;
      }
      text.setAttribute("aria-live", "off");
      text.addEventListener("click", (event) => {
        if (getSelection().isCollapsed) open("Tokens", findOffset(written, event));
      });
      for (const name of ["Tokens", "Attention"]) {
        const button = make("button", {
          type: "button", className: "plain", textContent: name, "aria-expanded": "false",
        });
        button.addEventListener("click", () => open(name));
        bar.append(button);
        views.set(name, { button, element: null });
      }
      if (!isChat) {
        const more = make("button", {
          type: "button", className: "plain", textContent: "Go on",
        });
        more.addEventListener("click", () => write(asked + answer.text));
        bar.append(more);
      }
      if (follows) scrollToEnd();
    },
  };

  /** Open a view, or close it where it is open and no place is pointed at. */
  async function open(name, offset = null) {
    const chosen = views.get(name);
    const isOpen = chosen.button.getAttribute("aria-expanded") === "true";
    for (const { button, element } of views.values()) {
      button.setAttribute("aria-expanded", "false");
      if (element) element.hidden = true;
    }
    text.hidden = false;
    if (isOpen && offset === null) return;
    chosen.button.setAttribute("aria-expanded", "true");
    showError(null);
    try {
      if (!chosen.element) {
        const body = { ...given, completion: answer.text };
        const show = name === "Tokens" ? showTokens : showAttention;
        chosen.element = await show(body, isChat ? null : asked);
        bar.before(chosen.element);
      }
      const isWanted = chosen.button.getAttribute("aria-expanded") === "true";
      chosen.element.hidden = !isWanted;
      text.hidden = isWanted; // it is in the view
      if (offset !== null) chosen.element.selectAt(offset);
    } catch (error) {
      chosen.button.setAttribute("aria-expanded", "false");
      showError(error);
    }
  }
  return answer;
}

/** How many characters of an element's text are before the place of a click. */
function findOffset(element, event) {
  const place = document.caretPositionFromPoint?.(event.clientX, event.clientY);
  const node = place?.offsetNode;
  if (!node || !element.contains(node)) return 0;
  const range = document.createRange();
  range.setStart(element, 0);
  range.setEnd(node, place.offset);
  return range.toString().length;
}

// ---------------------------------------------------------------- looking into it

const percent = (p) =>
  p >= 0.1 ? `${(100 * p).toFixed(0)} %` : p >= 0.001 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";

/** A token's name in which spaces and line ends are seen. */
const visible = (name) =>
  name.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");

const isSpecial = (name) => /^<.+>$/.test(name);

/** Tokens side by side, of which one is selected, by mouse or arrow keys. */
function makeTokens(tokens, numGiven, label, onSelect) {
  const box = make("div", { className: "tokens", role: "listbox", "aria-label": label });
  const spans = tokens.map(({ text, name }, i) => {
    const span = make("span", {
      className: "token", role: "option", tabIndex: -1, textContent: text || "◌",
      "aria-selected": "false", "aria-label": visible(name),
    });
    span.classList.toggle("is-given", i < numGiven);
    span.classList.toggle("is-special", isSpecial(name));
    span.addEventListener("click", () => select(i));
    span.addEventListener("focus", () => select(i));
    return span;
  });
  let selected = -1;
  function select(i) {
    if (i === selected || !spans[i]) return;
    for (const [j, span] of spans.entries()) {
      span.setAttribute("aria-selected", i === j);
      span.tabIndex = i === j ? 0 : -1;
    }
    selected = i;
    onSelect(i, spans);
  }
  box.addEventListener("keydown", (event) => {
    const to = {
      ArrowLeft: selected - 1, ArrowRight: selected + 1, Home: 0, End: spans.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    spans[to]?.focus();
  });
  box.append(...spans);
  return { box, spans, select };
}

function noteLeftOut(view, found) {
  if (!found.num_left_out) return;
  const about = `The first ${found.tokens.length} tokens, without ${found.num_left_out} after them.`;
  view.append(make("small", { textContent: about }));
}

/** Each token, the more coloured the less likely; of the selected one the others. */
async function showTokens(body, prompt) {
  const found = await askJson("/inspect/tokens", body);
  const tokens = [...found.tokens];
  if (found.next.length) {
    tokens.push({ text: " …", name: "what would come next", alternatives: found.next });
  }
  const title = make("p");
  const list = make("ol", { className: "alternatives" });
  const { box, spans, select } = makeTokens(tokens, found.num_given, "Tokens", (i) => {
    const token = tokens[i];
    list.replaceChildren();
    if (!token.alternatives.length) {
      title.textContent = "The first token: the model is given it.";
      return;
    }
    const isNext = i === found.tokens.length;
    title.replaceChildren(...isNext ? ["Next would come"] : [
      i < found.num_given ? "Given: " : "Written: ",
      make("code", { textContent: visible(token.name) }),
      `, ${percent(token.probability)} likely`,
    ]);
    const isShown = token.alternatives.some((other) => other.text === token.name);
    const others = [...token.alternatives];
    if (!isShown && !isNext) others.push({ text: token.name, probability: token.probability });
    for (const { text, probability } of others) {
      const isChosen = !isNext && text === token.name;
      const label = make("code", { textContent: visible(text), title: visible(text) });
      let name = label;
      const canGoOn = prompt !== null && i >= found.num_given && !isChosen;
      if (canGoOn && !isSpecial(text) && !/\\x[0-9a-f]{2}|^\[\d+\]$/.test(text)) {
        name = make("button", {
          type: "button", className: "plain", textContent: visible(text),
          title: "Go on with this instead",
        });
        const written = tokens.slice(found.num_given, i).map((other) => other.text);
        name.addEventListener("click", () => write(prompt + written.join("") + text));
      }
      const meter = make("meter", { max: 1, value: probability, "aria-hidden": "true" });
      const row = make("li", {}, make("div", {}, name), meter,
        make("span", { textContent: percent(probability) }));
      row.classList.toggle("is-chosen", isChosen);
      list.append(row);
    }
  });
  for (const [i, span] of spans.entries()) {
    const { probability } = tokens[i];
    if (i < found.num_given || probability === undefined) continue;
    span.style.setProperty("--weight", Math.round(55 * (1 - probability)));
  }
  const about = prompt === null
    ? "The stronger its colour, the less likely was a token to the model, before temperature and the rest. Choose one to see what else it might have said."
    : "The stronger its colour, the less likely was a token to the model, before temperature and the rest. Choose one to see what else it might have written; choose that to go on from there.";
  const view = make("div", { className: "view" },
    make("small", { textContent: about }), box, title, list);
  noteLeftOut(view, found);
  select(Math.min(found.num_given, tokens.length - 1));
  view.selectAt = (offset) => {
    let end = 0;
    for (let i = found.num_given; i < tokens.length; i += 1) {
      end += tokens[i].text.length;
      if (offset < end) {
        select(i);
        spans[i].scrollIntoView({ block: "nearest" });
        return;
      }
    }
  };
  return view;
}

/** What each token attends to, by the heads of a layer. */
async function showAttention(body) {
  const last = about.num_layers - 1;
  const layer = make("input", { type: "range", min: 0, max: last, step: 1 });
  layer.value = Math.floor(last / 2);
  layer.id = `layer-${layerCount += 1}`;
  const name = make("label", { htmlFor: layer.id });
  const heads = make("div", { className: "heads", role: "radiogroup", "aria-label": "Head" });
  const title = make("p", { "aria-live": "polite" });
  const view = make("div", { className: "view attention" });
  let found, head = 0, query = null, tokens = null;

  function paint() {
    const row = found.weights[head][query];
    const most = Math.max(...row);
    for (const [i, span] of tokens.spans.entries()) {
      span.style.setProperty("--weight", Math.round(85 * Math.sqrt((row[i] ?? 0) / most)));
    }
    const top = row.map((weight, i) => ({ weight, i }))
      .sort((a, b) => b.weight - a.weight).slice(0, 3).filter(({ weight }) => weight > 0.01);
    title.replaceChildren(`Head ${head}: `, make("code", { textContent: visible(found.tokens[query]) }),
      " attends to ", ...top.flatMap(({ weight, i }, n) => [
        n ? ", " : "", make("code", { textContent: visible(found.tokens[i]) }), ` ${percent(weight)}`,
      ]));
  }

  function choose(number) {
    head = number;
    for (const [i, button] of [...heads.children].entries()) {
      button.setAttribute("aria-checked", i === head);
      button.tabIndex = i === head ? 0 : -1;
    }
    paint();
  }

  async function load() {
    name.textContent = `Layer ${layer.value} of 0–${last}`;
    const asked = layer.value;
    const came = await askJson("/inspect/attention", { ...body, layer: Number(asked) });
    if (asked !== layer.value) return; // another was chosen meanwhile
    found = came;
    if (!tokens) {
      const shown = found.tokens.map((text) => ({ text, name: text }));
      tokens = makeTokens(shown, found.num_given, "Tokens", (i) => {
        query = i;
        if (found.weights[head]) paint();
      });
      for (const [i, span] of tokens.spans.entries()) {
        span.addEventListener("mouseenter", () => tokens.select(i));
      }
      view.append(tokens.box, title);
      noteLeftOut(view, found);
    }
    heads.replaceChildren(...found.weights.map((weights, number) => {
      const button = make("button", {
        type: "button", role: "radio", "aria-checked": "false", "aria-label": `Head ${number}`,
      }, drawHead(weights), String(number));
      button.addEventListener("click", () => choose(number));
      return button;
    }));
    if (query === null) tokens.select(found.tokens.length - 1);
    choose(Math.min(head, found.weights.length - 1));
  }

  heads.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = heads.childElementCount;
    choose((head + step + count) % count);
    heads.children[head].focus();
  });
  layer.addEventListener("input", () => load().catch(showError));
  view.append(make("small", {
    textContent: "A map for each head: a row for each token, darker where it attends to more. Choose a head, then point at a token: the others are coloured by how much it attends to them.",
  }), make("div", { className: "layer" }, name, layer), heads);
  await load();
  view.selectAt = () => {};
  return view;
}

/** A map of a head's weights: a row for each query, a column for each key. */
function drawHead(weights) {
  const n = weights.length;
  const canvas = make("canvas", { width: n, height: n });
  const context = canvas.getContext("2d");
  const image = context.createImageData(n, n);
  for (const [i, row] of weights.entries()) {
    for (const [j, weight] of row.entries()) {
      // the square root shows small weights too
      image.data.set([220, 95, 30, 255 * Math.sqrt(weight)], 4 * (n * i + j));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// ---------------------------------------------------------------- training

async function showRun() {
  let run;
  try {
    run = await askJson("/inspect/run");
  } catch {
    setTimeout(showRun, 4000 * RUN_SECONDS);
    return;
  }
  $("run").hidden = false;
  $("run-title").textContent = `Training: ${run.name}`;
  const of = run.steps ? ` of ${run.steps.toLocaleString("en")}` : "";
  const parts = [run.state, `step ${run.step.toLocaleString("en")}${of}`];
  if (run.seconds_left !== null) parts.push(`${Math.ceil(run.seconds_left / 60)} min left`);
  $("run-state").textContent = parts.join(" · ");
  if (run.training.length) drawCurve(run);
  showSamples(run.samples);
  if (run.state === "running") setTimeout(showRun, 1000 * RUN_SECONDS);
}

function makeSvg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The losses over the steps. */
function drawCurve({ training, validation }) {
  const points = [...training, ...validation];
  const losses = points.map((point) => point[1]);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const steps = Math.max(...points.map((point) => point[0]), 1);
  const room = (high - low) * 0.05 || 0.1;
  const x = (step) => 30 + (step / steps) * 284;
  const y = (loss) => 8 + ((high + room - loss) / (high - low + 2 * room)) * 156;
  const parts = [];
  const size = 10 ** Math.floor(Math.log10(high - low || 1));
  const gap = [0.2, 0.5, 1, 2].map((n) => n * size).find((n) => (high - low) / n <= 5) ?? size;
  for (let loss = Math.ceil(low / gap) * gap; loss <= high; loss += gap) {
    const digits = Math.max(0, -Math.floor(Math.log10(gap)));
    parts.push(makeSvg("line", { class: "grid", x1: 30, x2: 314, y1: y(loss), y2: y(loss) }));
    parts.push(makeSvg("text", { x: 26, y: y(loss) + 3, "text-anchor": "end" }, loss.toFixed(digits)));
  }
  for (const [step, anchor] of [[0, "start"], [steps, "end"]]) {
    const at = { x: x(step), y: 182, "text-anchor": anchor };
    parts.push(makeSvg("text", at, `${step ? "step " : ""}${step.toLocaleString("en")}`));
  }
  for (const [name, line] of [["training", training], ["validation", validation]]) {
    const places = line.map(([step, loss]) => `${x(step)},${y(loss)}`);
    parts.push(makeSvg("polyline", { class: name, points: places.join(" ") }));
  }
  for (const [step, loss] of validation) {  // a single one makes no line
    parts.push(makeSvg("circle", { class: "validation", cx: x(step), cy: y(loss), r: 2.5 }));
  }
  $("curve").replaceChildren(...parts);
  const best = Math.min(...validation.map((point) => point[1]));
  const about = ["Loss in nats per token: ",
    make("span", { className: "key-training", textContent: "training" }), " and ",
    make("span", { className: "key-validation", textContent: "validation" })];
  if (validation.length) about.push(`, best ${best.toFixed(3)}`);
  $("curve-about").replaceChildren(...about);
}

function showSamples(samples) {
  const slider = $("sample-step");
  const isAtLast = $("samples").hidden || slider.value === slider.max;
  $("samples").hidden = !samples.length;
  if (!samples.length) return;
  slider.max = samples.length - 1;
  if (isAtLast) slider.value = slider.max;
  slider.oninput = () => {
    const { step, text } = samples[slider.value];
    $("sample-at").textContent = step.toLocaleString("en");
    $("sample").textContent = text;
  };
  slider.oninput();
}

// ---------------------------------------------------------------- the frame

function setMode(name) {
  if (writing) writing.abort();
  drafts[mode] = $("prompt").value;
  mode = name;
  $("prompt").value = drafts[mode];
  for (const button of $("modes").children) {
    button.setAttribute("aria-pressed", button.dataset.mode === mode);
  }
  const isChat = mode === "chat";
  $("of-prompt").hidden = isChat;
  $("of-chat").hidden = !isChat;
  for (const element of document.querySelectorAll("#controls .of-chat")) {
    element.hidden = !isChat;
  }
  $("empty").hidden = $(`of-${mode}`).childElementCount > 0;
  $("hint").textContent = HINTS[mode];
  $("examples").hidden = isChat;
  $("send").textContent = isChat ? "Send" : "Generate";
  $("prompt").setAttribute("aria-label", isChat ? "Message" : "Prompt");
  $("prompt").placeholder = isChat ? "Say something" : "Once upon a time";
  showError(null);
}

function focusPrompt() {
  // a phone would show its keyboard
  if (!matchMedia(NARROW).matches) $("prompt").focus();
}

/** Offer the modes that the chosen model has. */
function chooseModel() {
  const canChat = about.models[$("model").selectedIndex].can_chat;
  $("modes").hidden = !canChat;
  if (!canChat && mode === "chat") setMode("prompt");
}

const THEMES = { "": "Auto", light: "Light", dark: "Dark" };

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = `◐ ${THEMES[name]}`;
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}. Change`);
  store(localStorage, "theme", name);
}

async function begin() {
  showError(null);
  try {
    about = await askJson("/inspect/model");
  } catch (error) {
    showError(error);
    return;
  }
  $("key-form").hidden = true;
  $("name").textContent = about.name;
  document.title = `${about.name} · keras_gpt`;
  const millions = about.num_parameters / 1e6;
  $("about").textContent = `${millions.toFixed(millions < 10 ? 1 : 0)} M parameters · `
    + `${about.num_layers} layers of ${about.num_heads} heads · `
    + `context ${about.context_length.toLocaleString("en")}`;
  for (const name of SAMPLING) {
    $(name).value = about.defaults[name] ?? OFF[name];
    $(name).dispatchEvent(new Event("input"));
  }
  $("max_tokens").max = about.most_new_tokens;
  $("max_tokens").value = Math.min(128, about.most_new_tokens);
  const names = about.models.map(({ name }) => name);
  $("model").replaceChildren(...names.map((name) => make("option", { textContent: name })));
  $("model").hidden = names.length === 1;
  if (about.has_run) showRun();
  setMode(about.models[0].can_chat ? "chat" : "prompt");
  chooseModel();
  focusPrompt();
}

function send() {
  const text = $("prompt").value;
  if (!text.trim() || writing || !about) return;
  if (mode === "chat") $("prompt").value = "";
  write(mode === "chat" ? text.trim() : text);
}

function clear() {
  if (writing) writing.abort();
  $(`of-${mode}`).replaceChildren();
  if (mode === "chat") messages = [];
  showError(null);
  $("empty").hidden = false;
  $("prompt").focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  store(sessionStorage, "key", $("key").value);
  $("key").value = "";
  begin();
});
$("prompt").addEventListener("keydown", (event) => {
  // Enter may also end the writing of a character of several keys
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && writing) writing.abort();
});
$("stop").addEventListener("click", () => writing?.abort());
$("clear").addEventListener("click", clear);
$("modes").addEventListener("click", (event) => {
  if (!event.target.dataset.mode) return;
  setMode(event.target.dataset.mode);
  focusPrompt();
});
$("model").addEventListener("change", chooseModel);
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
});
for (const slider of document.querySelectorAll("input[data-of]")) {
  const field = $(slider.dataset.of);
  slider.addEventListener("input", () => { field.value = slider.value; });
  field.addEventListener("input", () => { slider.value = field.value; });
}
for (const text of EXAMPLES) {
  const button = make("button", {
    type: "button", className: "plain", textContent: text.trim(),
  });
  button.addEventListener("click", () => {
    $("prompt").value = text;
    send();
  });
  $("examples").append(button);
}
setTheme(getStored(localStorage, "theme") ?? "");
if (matchMedia(NARROW).matches) $("settings").open = false;
begin();
