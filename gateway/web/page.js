// The page: asks for pictures the way any client does. Text from outside is only ever set as text.
const at = (id) => document.getElementById(id);

// Kept for this tab and no longer; never a cookie, which a browser would send by itself.
const KEY = "replicast-key";

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  const body = await response.json();
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Error(body.error ? body.error.message : response.statusText);
  return body;
}

function askForKey() {
  sessionStorage.removeItem(KEY);
  at("door").hidden = false;
  at("key").focus();
}

function useKey(event) {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value);
  at("door").reset();
  at("door").hidden = true;
  load().catch(fail);
}

function option(value, label) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = label || value;
  return element;
}

function say(text, failed) {
  at("status").textContent = text;
  at("status").classList.toggle("error", Boolean(failed));
}

let models = [];

function showSizes() {
  const model = models.find((row) => row.id === at("model").value);
  const size = model && model.generation_parameters ? model.generation_parameters.size : { default: "auto" };
  const known = size.enum || ["auto", size.default, "512x512", "1024x1024"];
  at("size").replaceChildren(...[...new Set(known)].map((name) => option(name, name === "auto" ? `auto (${size.default})` : name)));
  if (known.includes("512x512")) at("size").value = "512x512";
}

async function load() {
  models = (await call("v1/models")).data;
  at("model").replaceChildren(...models.map((model) => option(model.id)));
  at("go").disabled = models.length === 0;
  if (models.length === 0) {
    say("No model is ready yet.");
    setTimeout(() => load().catch(fail), 1000);
  } else {
    say("");
    showSizes();
  }
}

function fail(error) {
  say(error.message, true);
}

function figure(row, prompt) {
  const element = document.createElement("figure");
  const image = document.createElement("img");
  image.src = `data:image/png;base64,${row.b64_json}`;
  image.alt = prompt;
  const caption = document.createElement("figcaption");
  caption.textContent = `${prompt} · seed ${row.seed}`;
  element.append(image, caption);
  return element;
}

async function generate(event) {
  event.preventDefault();
  const wish = { prompt: at("prompt").value, model: at("model").value, size: at("size").value, n: Number(at("n").value) };
  const seed = at("seed").value.trim();
  if (seed) {
    // Larger ones are rounded by the browser itself: the picture would not be the one that was asked for.
    if (!/^\d+$/.test(seed) || !Number.isSafeInteger(Number(seed))) {
      say("A seed is a whole number of at most 9007199254740991.", true);
      return;
    }
    wish.seed = Number(seed);
  }
  at("go").disabled = true;
  say("Drawing…");
  const began = performance.now();
  try {
    const answer = await call("v1/images/generations", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(wish),
    });
    at("pictures").prepend(...answer.data.map((row) => figure(row, wish.prompt)));
    say(`${answer.data.length} ${answer.data.length === 1 ? "picture" : "pictures"} in ${((performance.now() - began) / 1000).toFixed(2)} s`);
  } catch (error) {
    fail(error);
  } finally {
    at("go").disabled = false;
  }
}

at("model").addEventListener("change", showSizes);
at("ask").addEventListener("submit", generate);
at("door").addEventListener("submit", useKey);
load().catch((error) => {
  fail(error);
  if (at("door").hidden) setTimeout(() => load().catch(fail), 2000);
});
