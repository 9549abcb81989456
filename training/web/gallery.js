"use strict";
// All clips show the same frame: `--frame` moves the pictures, the cursor and the slider.
const root = document.documentElement;
const facts = document.body.dataset;
const count = Number(facts.count), context = Number(facts.context), pause = Number(facts.pause);
const slider = document.querySelector("#frame"), button = document.querySelector("#play");
const place = document.querySelector("#place"), cursor = document.querySelector(".cursor");
let frame = 0, timer = null;

function show(wanted) {
  frame = (wanted + count) % count;
  root.style.setProperty("--frame", frame);
  const offset = frame - context + 1;
  document.body.classList.toggle("at-context", frame < context);
  slider.value = frame;
  place.textContent = frame < context ? "context " : "predicted ";
  place.append(Object.assign(document.createElement("b"), { textContent: offset > 0 ? "+" + offset : offset }));
  if (cursor) {
    cursor.style.visibility = offset > 0 ? "visible" : "hidden";
    const x = Number(cursor.dataset.left) + Number(cursor.dataset.pitch) * (offset - 1);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  }
}

function step() {
  show(frame + 1);
  timer = setTimeout(step, frame === count - 1 ? Math.max(1000, pause) : pause);
}

function play(on) {
  clearTimeout(timer);
  timer = on ? setTimeout(step, pause) : null;
  button.textContent = on ? "Pause" : "Play";
}

button.addEventListener("click", () => play(timer === null));
slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
for (const strip of document.querySelectorAll(".strip")) {
  strip.addEventListener("click", (event) => {
    play(false);
    show(Math.floor((event.offsetX / strip.clientWidth) * count));
  });
}
document.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.target === slider || event.target === button || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in steps) { play(false); show(frame + steps[event.key]); event.preventDefault(); }
  if (event.key === " ") { play(timer === null); event.preventDefault(); }
});
slider.max = count - 1;
show(0);
play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
