const find = (name) => document.querySelector(name);
const keys = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1], ArrowDown: [1, 1], a: [2, -1], d: [2, 1], w: [3, -1], s: [3, 1] };
const share = 1 / 12;  // a key press moves a slider by this fraction of its range
const film = 24;       // number of past frames below the picture
let session = null, recorded = [], next = 0, sees = 0, running = false, busy = false;
const before = new Map();

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

const sliders = game.sliders.map((slider) => {
  const place = (slider.high - slider.low) / 1000;
  const middle = (slider.high + slider.low) / 2;
  const input = element("input", { type: "range", min: slider.low, max: slider.high, step: place });
  input.value = middle;
  const output = element("output", { className: "number" });
  const show = () => { output.textContent = Number(input.value).toPrecision(3); };
  input.addEventListener("input", () => {
    show();
    if (!running) step();
  });
  // A dragged slider gives up the focus, so that keys drive the model; a slider reached by Tab keeps it.
  input.addEventListener("pointerup", () => input.blur());
  find("#sliders").append(element("label", { className: "slider" }, slider.name, input, output));
  show();
  return { input, show, range: slider.high - slider.low };
});

function move(number, value) {
  sliders[number].input.value = value;
  sliders[number].show();
}

async function call(path, body) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function say(text, isError = false) {
  find("#status").textContent = text;
  find("#status").classList.toggle("error", isError);
}

function picture(uris, captions, isMade) {
  const futures = find("#futures");
  futures.classList.toggle("made", isMade);
  while (futures.children.length > uris.length) futures.lastChild.remove();
  uris.forEach((uri, number) => {
    const figure = futures.children[number] ?? futures.appendChild(element("figure", {}, element("img", {}), element("figcaption", {})));
    figure.firstChild.src = uri;
    figure.firstChild.alt = "future " + (number + 1);
    figure.lastChild.textContent = captions[number];
  });
  remember(uris[0], !isMade);
}

function remember(uri, isContext) {
  find("#film").append(element("img", { src: uri, alt: "", className: isContext ? "context" : "" }));
  while (find("#film").children.length > film) find("#film").firstChild.remove();
  find("#film").scrollLeft = find("#film").scrollWidth;
}

async function guarded(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } catch (error) {
    run(false);
    say(error.message, true);
  } finally {
    busy = false;
  }
}

const start = () => guarded(async () => {
  run(false);
  say("Starting");
  const futures = Number(find("#count").value);
  const found = await call("/start", {
    episode: Number(find("#episode").value), frame: Number(find("#frame").value), futures: futures,
    temperature: Number(find("#temperature").value), seed: Number(find("#seed").value),
  });
  ({ session, recorded, sees } = found);
  next = 0;
  find("#replay").disabled = recorded.length === 0;
  // Start at the next recorded action: from the middle, the first key press would be a large jump.
  recorded[0]?.forEach((value, number) => move(number, value));
  find("#film").replaceChildren();
  found.frames.slice(0, -1).forEach((uri) => remember(uri, true));
  picture(Array(futures).fill(found.frames.at(-1)), Array(futures).fill("last true frame"), false);
  say("Ready: " + (sliders.length ? "press an arrow key, move a slider or press Run" : "press Run"));
});

async function predict(action) {
  const result = await call("/step", { session: session, action: action });
  const several = result.frames.length > 1;
  const captions = result.frames.map((_, number) => {
    const reward = result.rewards === null || result.rewards[number] === null ? "" : "reward " + result.rewards[number].toFixed(3);
    return [several ? "future " + (number + 1) : "", reward].filter(Boolean).join(", ");
  });
  picture(result.frames, captions, true);
  next += 1;
  const memory = result.step > sees ? "; older frames are forgotten" : "";
  say(`Frame ${result.step}, ${(1000 * result.seconds).toFixed(0)} ms${memory}`);
}

const step = () => guarded(() => predict(sliders.map((slider) => Number(slider.input.value))));

const replay = () => guarded(async () => {
  if (next >= recorded.length) throw new Error("the episode has no more actions");
  recorded[next].forEach((value, number) => move(number, value));
  await predict(recorded[next]);
});

function run(on) {
  running = on;
  find("#run").textContent = on ? "Pause" : "Run";
}

async function loop() {
  while (running) {
    await step();
    await new Promise(requestAnimationFrame);
  }
}

find("#run").addEventListener("click", () => { run(!running); loop(); });
find("#step").addEventListener("click", step);
find("#replay").addEventListener("click", replay);
find("#start").addEventListener("click", start);

document.addEventListener("keydown", async (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=number], input[type=range], select")) return;
  if (event.key === " " && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    find("#run").click();
  }
  const [number, direction] = keys[event.key] ?? [Infinity, 0];
  if (number >= sliders.length) return;
  event.preventDefault();
  const { input, range } = sliders[number];
  if (find("#spring").checked) {
    if (!before.has(event.key)) before.set(event.key, [number, input.value]);
    move(number, direction > 0 ? input.max : input.min);
  } else {
    move(number, Number(input.value) + direction * share * range);
  }
  if (!running) await step();
});
document.addEventListener("keyup", (event) => {
  if (!before.has(event.key)) return;
  move(...before.get(event.key));
  before.delete(event.key);
});

game.episodes.forEach((episode, number) => find("#episode").append(element("option", { value: number }, episode.name)));
find("#episode").addEventListener("change", () => {
  const episode = game.episodes[Number(find("#episode").value)];
  find("#frame").max = episode.last_start;
  find("#pace").textContent = episode.pace;
});
find("#episode").dispatchEvent(new Event("change"));
find("#count").max = game.max_futures;
find("#count").value = game.start.futures;
find("#temperature").value = game.start.temperature;
find("#seed").value = game.start.seed;
find("#meaning").textContent = game.meaning;
find("#spring-line").hidden = sliders.length === 0;
find("#keys").append(element("kbd", {}, "space"), " run or pause");
[["\u2190", "\u2192", "first slider"], ["\u2191", "\u2193", "second slider (up is less)"], ["a", "d", "third slider"], ["w", "s", "fourth slider"]]
  .slice(0, sliders.length)
  .forEach(([less, more, what]) => find("#keys").append(", ", element("kbd", {}, less), " ", element("kbd", {}, more), " " + what));
start();
