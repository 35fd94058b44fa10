// The page: draw, describe, edit. No library; what is remembered stays in this browser.

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
let model = null;

// Requests -------------------------------------------------------------------------

async function ask(path, body, signal) {
  const isForm = body instanceof FormData;
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", signal,
      headers: isForm ? {} : {"Content-Type": "application/json"},
      body: isForm ? body : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer.");
  }
  let found = null;
  try { found = await answer.json(); } catch { /* told below */ }
  if (!answer.ok) {
    throw new Error(found?.error?.message ?? `The service answered ${answer.status}.`);
  }
  return found;
}

// Runs what a form asks for, with progress, time, a way to stop, and errors.
function onSubmit(name, work) {
  const section = $(`#${name}`);
  const form = $("form", section), go = $(".go", form), stop = $(".stop", form);
  const progress = $(".progress", section), error = $(".error", section);
  let running = null;
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    const begun = performance.now();
    const seconds = () => `${((performance.now() - begun) / 1000).toFixed(1)} s`;
    const text = $("span", progress);
    error.hidden = true;
    go.disabled = true;
    progress.hidden = stop.hidden = $("progress", progress).hidden = false;
    text.textContent = "";
    const clock = setInterval(() => { text.textContent = seconds(); }, 100);
    try {
      const found = await work(new FormData(form), running.signal);
      const unknown = found.unknown_words?.join(", ");
      text.textContent = `Done in ${seconds()}` + (unknown ? `. The model does not know: ${unknown}` : "");
    } catch (wrong) {
      const stopped = wrong.name === "AbortError";
      text.textContent = stopped ? `Stopped after ${seconds()}` : "";
      error.textContent = stopped ? "" : wrong.message;
      error.hidden = stopped;
    } finally {
      clearInterval(clock);
      running = null;
      go.disabled = false;
      stop.hidden = $("progress", progress).hidden = true;
      remember(form);
    }
  });
}

// Forms remember what was in them ------------------------------------------------------

function remember(form) {
  const values = {};
  for (const field of form.elements) {
    if (!field.name || field.type === "file") continue;
    if (field.type === "radio") { if (field.checked) values[field.name] = field.value; }
    else values[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  try { localStorage.setItem(form.id, JSON.stringify(values)); } catch { /* not allowed */ }
}

function recall(form) {
  let values = {};
  try { values = JSON.parse(localStorage.getItem(form.id)) ?? {}; } catch { /* none */ }
  for (const field of form.elements) {
    if (!(field.name in values)) continue;
    if (field.type === "checkbox") field.checked = values[field.name];
    else if (field.type === "radio") field.checked = field.value === values[field.name];
    else field.value = values[field.name];
  }
}

// Pictures -------------------------------------------------------------------------------

function toBlob(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Blob([bytes], {type: "image/png"});
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

function showPictures(grid, pictures, label) {
  for (const image of $$("img", grid)) URL.revokeObjectURL(image.src);
  grid.replaceChildren(...pictures.map((picture, i) => {
    const blob = toBlob(picture.b64_json);
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = URL.createObjectURL(blob);
    image.alt = picture.prompt;
    const text = document.createElement("figcaption");
    text.textContent = label(picture, i);
    const save = document.createElement("a");
    save.href = image.src;
    save.download = `${picture.prompt.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 40)}_${picture.seed}.png`;
    save.textContent = "Save";
    const actions = document.createElement("div");
    actions.append(save);
    if (model.describes) actions.append(button("Describe", () => {
      setPicture("describe", blob);
      choose("describe", true);
      $("#describe-form").requestSubmit();
    }));
    if (model.edits.length) actions.append(button("Edit", () => {
      const form = $("#edit-form");
      if (form.elements.kind.value === "interpolations") form.elements.kind.value = "variations";
      form.elements.before.value = picture.prompt;
      showKind();
      setPicture("edit", blob);
      choose("edit", true);
    }));
    text.append(actions);
    figure.append(image, text);
    return figure;
  }));
}

// Places where a picture is dropped, pasted, chosen or taken; its blob by section.
const chosen = {};

function setPicture(name, blob) {
  const image = $(`#${name} [data-picture] img`);
  if (image.src) URL.revokeObjectURL(image.src);
  chosen[name] = blob;
  image.src = URL.createObjectURL(blob);
  image.alt = "The picture";
  image.hidden = false;
}

function needPicture(name) {
  if (!chosen[name]) throw new Error("There is no picture yet: drop, paste, choose or take one.");
  return chosen[name];
}

function setUpPlace(name) {
  const place = $(`#${name} [data-picture]`), file = $("input[type=file]", place);
  file.addEventListener("change", () => { if (file.files[0]) setPicture(name, file.files[0]); });
  place.addEventListener("dragover", (event) => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("over");
    if (event.dataTransfer.files[0]) setPicture(name, event.dataTransfer.files[0]);
  });
  const camera = $(".camera", place), video = $("video", place);
  camera.addEventListener("click", async () => {
    if (video.srcObject) return take(name, video, camera);
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
      video.hidden = false;
      await video.play();
      camera.textContent = "Take";
    } catch {
      // Without HTTPS browsers give no camera, but phones still take a photo for a file.
      file.setAttribute("capture", "environment");
      file.click();
      file.removeAttribute("capture");
    }
  });
}

function take(name, video, camera) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  for (const track of video.srcObject.getTracks()) track.stop();
  video.srcObject = null;
  video.hidden = true;
  camera.textContent = "Camera";
  canvas.toBlob((blob) => setPicture(name, blob), "image/png");
}

document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  const name = current();
  if (file && name !== "draw") setPicture(name, file);
});

// Tabs -----------------------------------------------------------------------------------

const tabs = () => $$("[role=tab]").filter((tab) => !tab.hidden);
const current = () => $("[role=tab][aria-selected=true]").getAttribute("aria-controls");

function choose(name, moves = false) {
  for (const tab of $$("[role=tab]")) {
    const own = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = !own;
    if (own && moves) tab.focus();
  }
  history.replaceState(null, "", `#${name}`);
}

for (const tab of $$("[role=tab]")) {
  tab.addEventListener("click", () => choose(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const all = tabs(), at = all.indexOf(tab);
    const next = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    choose(all[(next + all.length) % all.length].getAttribute("aria-controls"), true);
  });
}

// The three things to do -------------------------------------------------------------------

const given = (data, names) => {
  const found = {};
  for (const [name, convert] of Object.entries(names)) {
    if (data.get(name)) found[name] = convert(data.get(name));
  }
  return found;
};

onSubmit("draw", async (data, signal) => {
  const form = $("#draw-form");
  if (data.get("fresh")) form.elements.seed.value = Math.floor(Math.random() * 2 ** 31);
  const options = given(data, {steps: Number, scale: Number, solver: String, source: String});
  if (data.get("unguided")) options.scale = 1;
  const asked = {prompt: data.get("prompt"), n: Number(data.get("n")), seed: Number(form.elements.seed.value)};
  const found = await ask("/v1/images/generations", {...asked, ...options}, signal);
  showPictures($("#draw .grid"), found.data, (picture) => `seed ${picture.seed}`);
  return found;
});

onSubmit("describe", async (data, signal) => {
  const blob = needPicture("describe");
  const form = new FormData();
  form.append("image", blob, "picture");
  form.append("seed", 0);
  const found = await ask("/v1/captions", form, signal);
  const item = document.createElement("li"), image = document.createElement("img");
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  item.append(image, found.data[0].caption || "(nothing)");
  $("#describe .captions").prepend(item);
  return found;
});

// Some steps have their guidance inside.
function showGuidance() {
  const form = $("#draw-form").elements;
  const fixed = !model.guided.includes(form.solver.value);
  for (const input of [form.scale, form.unguided]) input.disabled = fixed;
  form.scale.placeholder = fixed ? "inside" : model.sample.scale;
}

function showKind() {
  const kind = $("#edit-form").elements.kind.value;
  for (const part of $$("#edit [data-for]")) part.hidden = !part.dataset.for.split(" ").includes(kind);
}

onSubmit("edit", async (data, signal) => {
  const kind = data.get("kind");
  let body;
  if (kind === "interpolations") {
    body = {
      prompts: [data.get("from"), data.get("to")],
      columns: Number(data.get("columns")), seed: Number(data.get("seed")),
    };
  } else {
    body = new FormData();
    body.append("image", needPicture("edit"), "picture");
    body.append("strength", data.get("strength"));
    if (kind === "variations") body.append("seed", data.get("seed"));
    if (kind === "edits") {
      body.append("prompt", data.get("after"));
      if (data.get("before")) body.append("before", data.get("before"));
    }
  }
  const found = await ask(`/v1/images/${kind}`, body, signal);
  showPictures($("#edit .grid"), found.data, (picture) => picture.prompt);
  return found;
});

// The start ------------------------------------------------------------------------------

async function waitUntilReady() {
  const state = $("#state");
  for (;;) {
    try {
      const listed = await (await fetch("/v1/models")).json();
      const status = listed.data[0].status;
      state.textContent = status === "ready" ? "Ready" : `The model is ${status} ...`;
      if (status === "ready") return;
    } catch {
      state.textContent = "The service does not answer.";
    }
    await new Promise((done) => setTimeout(done, 500));
  }
}

async function start() {
  const listed = await (await fetch("/v1/models")).json();
  model = {edits: [], ...listed.data[0]};
  $("#model").textContent = `${model.id}, ${model.image_size} x ${model.image_size} pixels`;
  const solver = $("#draw-form").elements.solver;
  for (const name of model.solvers) solver.add(new Option(name, name, name === model.sample.solver, name === model.sample.solver));
  $("[name=steps]").placeholder = model.sample.num_steps;
  $("#tab-edit").hidden = !model.edits.length;
  $("#tab-describe").hidden = !model.describes;
  for (const form of $$("form")) recall(form);
  for (const form of $$("form")) form.addEventListener("change", () => remember(form));
  for (const input of $$("#edit [name=kind]")) input.addEventListener("change", showKind);
  showKind();
  solver.addEventListener("change", showGuidance);
  showGuidance();
  for (const name of ["describe", "edit"]) setUpPlace(name);
  const wanted = location.hash.slice(1);
  if (tabs().some((tab) => tab.getAttribute("aria-controls") === wanted)) choose(wanted);
  if (current() === "draw") $("#draw-form").elements.prompt.focus();
  await waitUntilReady();
}

start().catch(() => { $("#state").textContent = "The service does not answer."; });
