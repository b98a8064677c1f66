"use strict";
// Each picture stands in the page once, in its section; what lies on the left of a slider is another view of it.
const pictures = [...document.querySelectorAll("[data-result]")].flatMap((section) => {
  const image = section.querySelector("img");
  return image ? [{ section, name: section.dataset.result, image }] : [];
});
for (const stage of document.querySelectorAll("[data-compare]")) {
  const section = stage.closest("section");
  const select = section.querySelector("[data-left]");
  const split = section.querySelector("[data-split]");
  const left = document.createElement("img");
  left.className = "left";
  left.draggable = false;
  const others = pictures.filter((picture) => picture.section !== section).reverse();
  for (const { name } of others) select.add(new Option(name));
  const show = () => {
    const chosen = others[select.selectedIndex];
    left.src = chosen.image.src;
    left.alt = `Left: ${chosen.name}`;
    split.setAttribute("aria-label", `Slider: ${chosen.name} and ${section.dataset.result}`);
  };
  const move = () => {
    stage.style.setProperty("--split", `${split.value}%`);
    split.setAttribute("aria-valuetext", `${split.value} % left, ${100 - split.value} % right`);
  };
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    split.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    move();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  select.addEventListener("change", show);
  split.addEventListener("input", move);
  show();
  move();
  stage.insertBefore(left, stage.querySelector(".handle"));
}
